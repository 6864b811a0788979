"""Layers, origins, and mistakes told in one sentence each."""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import wasmkiln
from pydantic import ValidationError
from wasmkilnd.machine import file_system_bytes
from wasmkilnd.options import host_options
from wasmkilnd.settings import Settings, env_name
from wasmkilnd.settings_loader import ConfigError, FlagValue, as_json, load, render

HOME = {"HOME": "/home/kiln"}
URL = "https://name.upstash.example"


def problems(
    flags: dict[str, FlagValue] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, {**HOME, **(environ or {})}, file)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value).splitlines()


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "kiln.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_that_others_rely_on() -> None:
    loaded = load({}, HOME)
    settings = loaded.settings
    assert settings.listen == ("127.0.0.1:50051",)
    assert settings.admin_listen == "127.0.0.1:9464"
    assert settings.max_module_bytes == 5 * 2**20
    assert settings.compile_timeout_s == 30
    assert settings.cache_ttl_s == 7 * 24 * 3600
    assert settings.redis_url.get_secret_value() == ""
    assert settings.state_dir == Path("/home/kiln/.local/state/wasmkiln")
    assert set(loaded.origins) == set(Settings.model_fields)
    assert set(loaded.origins.values()) == {"default"}


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = toml(tmp_path, 'workers = 1\nqueue_length = 1\nmemory_bytes = "1MiB"\n')
    environ = {**HOME, "WASMKILN_WORKERS": "2", "WASMKILN_QUEUE_LENGTH": "2"}
    loaded = load({"workers": "3"}, environ, file)
    assert loaded.settings.workers == 3
    assert loaded.settings.queue_length == 2
    assert loaded.settings.memory_bytes == 2**20
    assert loaded.origins["workers"] == "flag --workers"
    assert loaded.origins["queue_length"] == "env WASMKILN_QUEUE_LENGTH"
    assert loaded.origins["memory_bytes"] == f"file {file}"
    assert loaded.origins["log_level"] == "default"


def test_a_value_that_is_overruled_is_not_judged() -> None:
    loaded = load({"workers": "3"}, {**HOME, "WASMKILN_WORKERS": "many"})
    assert loaded.settings.workers == 3


def test_the_environment_names_the_file_and_a_flag_another(tmp_path: Path) -> None:
    file = toml(tmp_path, "workers = 5\n")
    assert load({}, {**HOME, "WASMKILN_CONFIG": str(file)}).settings.workers == 5
    assert load({}, {**HOME, "WASMKILN_CONFIG": "/nowhere"}, file).settings.workers == 5
    assert load({}, {**HOME, "WASMKILN_CONFIG": ""}).settings.workers == 0


@pytest.mark.parametrize(
    "given", ["127.0.0.1:1,unix:/a", ("127.0.0.1:1", "unix:/a"), ("127.0.0.1:1, unix:/a",)]
)
def test_several_addresses(given: FlagValue) -> None:
    assert load({"listen": given}, HOME).settings.listen == ("127.0.0.1:1", "unix:/a")


def test_the_state_dir_follows_the_users_state_home() -> None:
    assert load({}, {"XDG_STATE_HOME": "/s"}).settings.state_dir == Path("/s/wasmkiln")
    relative = load({}, {**HOME, "XDG_STATE_HOME": "s"}).settings.state_dir
    assert relative == Path("/home/kiln/.local/state/wasmkiln")


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ConfigError, match="WASMKILN_STATE_DIR"):
        load({}, {})
    assert load({"state_dir": "/x"}, {}).settings.state_dir == Path("/x")


IMPOSSIBLE = [
    ("listen", "nowhere"),
    ("admin_listen", "127.0.0.1:70000"),
    ("redis_url", "ftp://h"),
    ("redis_timeout_s", "0"),
    ("redis_timeout_s", "inf"),
    ("redis_prefix", "a{b}"),
    ("embedded_redis_bytes", "0"),
    ("cache_ttl_s", "500ms"),
    ("memory_bytes", "99999999GiB"),
    ("max_module_bytes", "2GiB"),
    ("max_artifact_bytes", "0"),
    ("default_engine", "was mer"),
    ("workers", "-1"),
    ("queue_length", "0"),
    ("compile_timeout_s", "0"),
    ("compile_memory_bytes", "lots"),
    ("log_format", "xml"),
    ("allow_remote", "maybe"),
    ("state_dir", ""),
    *((name, "~no-such-user/x") for name in ("state_dir", "policy_file", "trusted_keys")),
]


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_one_line_with_key_and_origin(field: str, value: str) -> None:
    (line,) = problems(environ={env_name(field): value})
    assert line.startswith(f"{field} (env {env_name(field)}): ")


@pytest.mark.parametrize(
    "text",
    [
        "workers = true",
        "admin_listen = 1",
        "allow_remote = 2",
        "listen = [1]",
        "redis_url = 1",
    ],
)
def test_a_wrong_toml_type_is_one_line(tmp_path: Path, text: str) -> None:
    file = toml(tmp_path, text)
    (line,) = problems(file=file)
    assert line.startswith(f"{text.split()[0]} (file {file}): ")


def test_several_problems_are_a_line_each(tmp_path: Path) -> None:
    file = toml(tmp_path, "workrs = 1\n[table]\nx = 1\n")
    lines = problems({"workers": "x"}, {"WASMKILN_LISTN": "a"}, file)
    assert len(lines) == 4
    assert lines[0] == f"workrs in file {file} is not a setting: did you mean workers?"
    assert lines[1].startswith(f"table in file {file} is not a setting")
    assert lines[2].endswith("did you mean WASMKILN_LISTEN?")
    assert lines[3].startswith("workers (flag --workers)")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WASMKILN_ADDRESS", "127.0.0.1:1"),
        ("WASMKILN_TOKEN_OVER_PLAINTEXT", "1"),
        ("WASMKILN_TEST_ANYTHING", "1"),
        ("WASMKILN_SERVICE_HOST", "10.0.0.1"),
        ("WASMKILN_SERVICE_PORT_GRPC", "50051"),
        ("WASMKILN_PORT", "tcp://10.0.0.1:50051"),
        ("WASMKILN_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
        ("WASMKILN_PORT_50051_TCP_PROTO", "tcp"),
        ("WASMKILN_REDIS_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_variables_that_are_somebody_elses_are_passed_over(name: str, value: str) -> None:
    load({}, {**HOME, name: value})


def test_no_variable_of_the_client_is_unknown() -> None:
    folder = Path(wasmkiln.__file__).parent
    sources = "".join(path.read_text() for path in folder.rglob("*.py"))
    names = set(re.findall(r"[\"'](WASMKILN_[A-Z_]+)[\"']", sources))
    assert {"WASMKILN_ADDRESS", "WASMKILN_COMPRESSION", "WASMKILN_TOKEN_OVER_PLAINTEXT"} <= names
    with pytest.raises(ConfigError) as caught:
        load({"workers": "x"}, {**HOME, **dict.fromkeys(names, "")})
    assert "is not a setting" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["WASMKILN_ADMIN_PORT", "WASMKILN_PORT", "WASMKILN_X", "WASMKILN_"]
)
def test_other_unknown_variables_are_refused(name: str) -> None:
    (line,) = problems(environ={name: "9464"})
    assert line.startswith(f"{name} in the environment is not a setting")


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (missing,) = problems(environ={"WASMKILN_CONFIG": str(tmp_path / "none.toml")})
    assert missing.startswith("cannot read file ")
    assert "none.toml (named by WASMKILN_CONFIG): No such file" in missing
    (folder,) = problems(file=tmp_path)
    assert folder.startswith("cannot read file ")
    assert "(named by --config): Is a directory" in folder
    (malformed,) = problems(file=toml(tmp_path, 'redis_url = "redis://:hunter2@h'))
    assert "not valid TOML" in malformed
    assert "hunter2" not in malformed
    for text in (f"workers = {'9' * 5000}", f"workers = 0x{'f' * 5000}"):
        (number,) = problems(file=toml(tmp_path, text))
        assert number.endswith("not valid TOML: a number does not fit into 64 bits")
    (deep,) = problems(file=toml(tmp_path, f"a = {'[' * 5000}{']' * 5000}"))
    assert "not valid TOML" in deep
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in problems(file=binary)[0]


def test_no_secret_gets_out() -> None:
    environ = {**HOME, "WASMKILN_REDIS_URL": "redis://bob:hunter2@h:1/0"}
    loaded = load({}, environ)
    shown = (
        f"{loaded} {loaded!r} {loaded.settings.model_dump()} {loaded.settings.model_dump_json()}"
    )
    assert "hunter2" not in shown
    assert "hunter2" in loaded.settings.redis_url.get_secret_value()
    (line,) = problems(environ={"WASMKILN_REDIS_URL": "ftp://bob:hunter2@h"})
    assert "hunter2" not in line
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"redis_url": "ftp://bob:hunter2@h"})
    assert "hunter2" not in str(caught.value)


def test_zero_means_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkilnd.settings.cpu_count", lambda: 6)
    monkeypatch.setattr("wasmkilnd.settings.memory_bytes", lambda: 2 * 2**30)
    settings = load({"compile_timeout_s": "10s"}, HOME).settings
    assert settings.effective_workers == 6
    assert settings.effective_compile_cpu_s == 60
    assert settings.effective_compile_memory_bytes == 2**29
    monkeypatch.setattr("wasmkilnd.settings.memory_bytes", lambda: 64 * 2**30)
    assert settings.effective_compile_memory_bytes == 4 * 2**30
    given = {"workers": "1", "compile_cpu_s": "7", "compile_memory_bytes": "9GiB"}
    settings = load(given, HOME).settings
    assert settings.effective_workers == 1
    assert settings.effective_compile_cpu_s == 7
    assert settings.effective_compile_memory_bytes == 9 * 2**30


@pytest.mark.parametrize("redis", ["", "none"])
@pytest.mark.parametrize("gib", [0.5, 1, 2, 4, 8, 24, 1024])
def test_jobs_leave_room_for_all_else(
    monkeypatch: pytest.MonkeyPatch, gib: float, redis: str
) -> None:
    machine = int(gib * 2**30)
    monkeypatch.setattr("wasmkilnd.settings.cpu_count", lambda: 2)
    monkeypatch.setattr("wasmkilnd.settings.memory_bytes", lambda: machine)
    settings = load({"redis_url": redis}, HOME).settings
    budgets = [settings.memory_bytes, *(settings.receive_bytes for _ in range(3))]
    if not redis:
        budgets.append(settings.embedded_redis_bytes)
    assert sum(budgets) < settings.beside_jobs_bytes
    jobs = settings.effective_compile_memory_total_bytes
    assert jobs >= settings.effective_compile_memory_bytes >= 2**27
    # A smaller machine gives them a quarter, and the daemon says that there is too little.
    assert jobs + settings.beside_jobs_bytes <= machine or (gib < 4 and jobs == machine // 4)


def test_all_jobs_have_at_least_what_one_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wasmkilnd.settings.cpu_count", lambda: 2)
    monkeypatch.setattr("wasmkilnd.settings.memory_bytes", lambda: 8 * 2**30)

    def limits(**given: FlagValue) -> tuple[int, int]:
        settings = load(given, HOME).settings
        one = settings.effective_compile_memory_bytes
        return one // 2**20, settings.effective_compile_memory_total_bytes // 2**20

    # The daemon, workers, connections, calls; the tiers, requests and what follows, one value.
    left = 8192 - 96 - 2 * 64 - 128 - 128 - 256 - 1536 - 1664 - 261
    assert limits() == (left, left)
    assert limits(compile_memory_total_bytes="1GiB") == (1024, 1024)
    assert limits(compile_memory_bytes="7GiB") == (7168, 7168)
    one = {"compile_memory_bytes": "2GiB", "compile_memory_retry_bytes": "3GiB"}
    assert limits(**one) == (2048, left)
    [line] = problems({"compile_memory_bytes": "2GiB", "compile_memory_total_bytes": "1GiB"})
    assert "it is 1,073,741,824, below compile_memory_bytes, 2,147,483,648" in line
    [line] = problems({"compile_memory_retry_bytes": "2GiB"})
    assert "compile_memory_retry_bytes" in line
    assert f"it is below compile_memory_bytes, {left * 2**20:,}" in line
    [line] = problems({"compile_memory_retry_bytes": "5GiB", "compile_memory_total_bytes": "4GiB"})
    assert "below compile_memory_retry_bytes" in line
    for setting in ("compile_memory_bytes", "compile_memory_total_bytes"):
        [line] = problems({setting: "127MiB"})
        assert "most modules need 134,217,728 to compile" in line
    assert limits(compile_memory_bytes="128MiB") == (128, left)
    # What is tried alone does not raise what all together may have.
    [line] = problems({"compile_memory_retry_bytes": "7GiB"})
    assert f"it is {left * 2**20:,}, below compile_memory_retry_bytes, 7,516,192,768" in line


# Where a daemon may listen: TLS and identities on a network, and settings that go together


TLS = {"tls_cert_file": "/c", "tls_key_file": "/k"}
REMOTE = "0.0.0.0:1"


@pytest.mark.parametrize("field", ["listen", "admin_listen"])
def test_a_network_needs_tls_and_identities(field: str, tmp_path: Path) -> None:
    given: dict[str, FlagValue] = {field: REMOTE, "state_dir": str(tmp_path)}
    [line] = problems(given)
    assert line.startswith(
        f"{field} (flag --{field.replace('_', '-')}): other machines can reach {REMOTE}, which"
        " needs TLS (tls_cert_file, tls_key_file) and identities (tls_client_ca_file,"
    )
    assert "allow_remote" in line
    [line] = problems({**given, **TLS})
    assert "needs identities (" in line
    assert "needs TLS" not in line
    [line] = problems({**given, "policy_file": "/p"})
    assert "needs TLS (" in line
    assert "identities" not in line
    for source in ("policy_file", "tls_client_ca_file", "tokens_file"):
        load({**given, **TLS, source: "/x"}, HOME)
    load({**given, "allow_remote": True}, HOME)
    (tmp_path / "access").mkdir()
    (tmp_path / "access" / "tokens.json").write_text("{}")
    load({**given, **TLS}, HOME)


@pytest.mark.parametrize("field", ["token_listen", "operator_listen"])
def test_tokens_and_operators_need_tls_on_a_network_in_any_case(field: str) -> None:
    [line] = problems({field: REMOTE, "allow_remote": True, "policy_file": "/p"})
    assert f"other machines can reach {REMOTE}: it needs TLS" in line
    load({field: "127.0.0.1:1"}, HOME)
    load({field: REMOTE, "policy_file": "/p", **TLS}, HOME)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tls_cert_file": "/c"}, "tls_key_file (default): it is missing: tls_cert_file needs it"),
        ({"tls_key_file": "/k"}, "tls_cert_file (default): it is missing: tls_key_file needs it"),
        (
            {"tls_client_ca_file": "/a"},
            "tls_client_ca_file (flag --tls-client-ca-file): it needs TLS: set tls_cert_file and"
            " tls_key_file too",
        ),
        (
            {"token_listen": "unix:/a"},
            "token_listen (flag --token-listen): unix:/a is a Unix socket, which speaks no TLS:"
            " name it in listen",
        ),
        (
            {"audit_file": "log", "log_level": "warning"},
            "audit_file (flag --audit-file): at log_level warning the log leaves the audit out:"
            " set log_level to info, or name a file",
        ),
        ({"redis_url": URL}, "redis_url (flag --redis-url): https:// needs a token"),
        ({"redis_url": "redis://:a@h", "redis_password_file": "/f"}, "password is given twice"),
        ({"redis_url": "redis://h", "redis_ca_file": "/f"}, "redis:// is not encrypted"),
        ({"redis_url": "unix:///s", "redis_ca_file": "/f"}, "unix:// is not encrypted"),
        ({"redis_url": "redis://h", "redis_ca_file": "a\0b"}, "expected a path"),
        ({"host_store_bytes": "-1"}, "host_store_bytes (flag --host-store-bytes): "),
        ({"host_store_bytes": "99999999GiB"}, "host_store_bytes (flag --host-store-bytes): "),
        ({"host_store_dir": "\0"}, "host_store_dir (flag --host-store-dir): "),
        ({"host_store_group": "no-such-group"}, "is not a group of this machine"),
        # In the units that people write.
        (
            {"max_module_bytes": "2GiB"},
            "max_module_bytes (flag --max-module-bytes): '2GiB' is not allowed: it should be less"
            " than or equal to 1GiB",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(given: dict[str, FlagValue], problem: str) -> None:
    [line] = problems(given)
    assert problem in line


def test_a_tokens_file_that_cannot_be_looked_at_may_be_there(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert not settings.has_tokens_file
    settings.effective_tokens_file.parent.mkdir()
    settings.effective_tokens_file.symlink_to(settings.effective_tokens_file)
    assert settings.has_tokens_file
    assert settings.needs_identities
    (tmp_path / "file").touch()
    assert not Settings(state_dir=tmp_path / "file").has_tokens_file


# Upstash's variables, other Redis settings, and what does not go together


def redis_of(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Return URL and password."""
    settings = load(flags or {}, {**HOME, **environ}).settings
    return settings.redis_url.get_secret_value(), settings.redis_password.get_secret_value()


def test_upstashs_variables_are_enough() -> None:
    environ = {"UPSTASH_REDIS_URL": URL, "UPSTASH_REDIS_TOKEN": "tok"}
    assert redis_of(environ) == (URL, "tok")
    origins = load({}, {**HOME, **environ}).origins
    assert origins["redis_url"] == "env UPSTASH_REDIS_URL"
    assert origins["redis_password"] == "env UPSTASH_REDIS_TOKEN"
    rest = {"UPSTASH_REDIS_REST_URL": URL, "UPSTASH_REDIS_REST_TOKEN": "other"}
    assert redis_of(rest) == (URL, "other")
    assert redis_of({**rest, **environ}) == (URL, "tok")
    assert redis_of({"UPSTASH_REDIS_TOKEN": "tok"}, {"redis_url": URL}) == (URL, "tok")


@pytest.mark.parametrize("ours", ["", "none", "redis://h"])
def test_ours_are_taken_first(ours: str) -> None:
    environ = {"UPSTASH_REDIS_URL": URL, "UPSTASH_REDIS_TOKEN": "tok"}
    assert redis_of({**environ, "WASMKILN_REDIS_URL": ours}) == (ours, "")
    assert redis_of(environ, {"redis_url": ours}) == (ours, "")
    assert redis_of({**environ, "WASMKILN_REDIS_PASSWORD": "mine"}) == (URL, "mine")


def test_a_token_goes_nowhere_but_to_a_rest_url_without_one() -> None:
    protocol = "rediss://default:pw@name.upstash.example:6379"
    environ = {"UPSTASH_REDIS_URL": protocol, "UPSTASH_REDIS_TOKEN": "tok"}
    assert redis_of(environ) == (protocol, "")
    own = URL.replace("://", "://:mine@")
    assert redis_of({"UPSTASH_REDIS_TOKEN": "tok"}, {"redis_url": own}) == (own, "")


def test_a_password_twice_is_told_without_it() -> None:
    environ = {"WASMKILN_REDIS_PASSWORD": "hunter2"}
    [line] = problems({"redis_url": "redis://:hunter3@h"}, environ)
    assert "redis_password (env WASMKILN_REDIS_PASSWORD)" in line
    assert "hunter" not in line


def test_files_are_paths_from_here() -> None:
    of_file = settings(redis_url="rediss://h", redis_ca_file="ca.pem")
    assert of_file.redis_ca_file.startswith("/")
    assert settings(redis_ca_file=" ").redis_ca_file == ""


def test_what_is_shown_holds_no_secret() -> None:
    loaded = load({}, {**HOME, "UPSTASH_REDIS_URL": URL, "UPSTASH_REDIS_TOKEN": "hunter2"})
    for shown in (render(loaded), as_json(loaded)):
        assert "hunter" not in shown
        assert URL in shown


# The settings of the host store: what is allowed, and what the machine decides


GIB = 2**30


def settings(**flags: str) -> Settings:
    return load({"state_dir": "/somewhere", **flags}, {"HOME": "/root"}).settings


def test_the_defaults_follow_the_state_directory_and_its_file_system(tmp_path: Path) -> None:
    one = settings(state_dir=str(tmp_path / "state"))
    assert one.effective_host_store_dir == tmp_path / "state" / "host_store"
    tenth = file_system_bytes(tmp_path) // 10
    assert one.effective_host_store_bytes == min(4 * GIB, tenth)
    options = host_options(one)
    assert (options.file_mode, options.folder_mode, options.group) == (0o640, 0o750, None)
    loaded = load({"state_dir": str(tmp_path)}, {"HOME": "/root"})
    assert 'host_store_bytes = "auto"  # default; ' in render(loaded)


def test_a_size_or_auto() -> None:
    assert settings(host_store_bytes="2GiB").effective_host_store_bytes == 2 * GIB
    assert settings(host_store_bytes="0").effective_host_store_bytes == 0
    assert settings(host_store_bytes=" Auto ").host_store_bytes == "auto"


def test_the_directory_may_be_none_or_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = settings(host_store_dir=" none ", host_store_bytes="1GiB")
    assert (off.host_store_dir, off.effective_host_store_bytes) == ("none", 0)
    assert not host_options(off).limit_bytes
    monkeypatch.chdir(tmp_path)
    assert settings(host_store_dir="some").effective_host_store_dir == tmp_path / "some"
    assert settings(host_store_dir="./none").effective_host_store_dir == tmp_path / "none"


def test_a_group_is_a_name_or_a_number() -> None:
    ours = grp.getgrgid(os.getegid())
    assert host_options(settings(host_store_group=ours.gr_name)).group == ours.gr_gid
    assert host_options(settings(host_store_group="12345")).group == 12345
