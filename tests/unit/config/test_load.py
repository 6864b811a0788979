"""Layers, origins, and mistakes told in one sentence each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wasmkiln
from pydantic import ValidationError
from wasmkilnd.settings import Settings, env_name
from wasmkilnd.settings_loader import ConfigError, FlagValue, load

HOME = {"HOME": "/home/kiln"}


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


def test_limits_are_told_in_the_units_that_people_write() -> None:
    (line,) = problems({"max_module_bytes": "2GiB"})
    assert line == (
        "max_module_bytes (flag --max-module-bytes): '2GiB' is not allowed: it should be less"
        " than or equal to 1GiB"
    )


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
    assert settings.effective_compile_memory_bytes == 2**30
    monkeypatch.setattr("wasmkilnd.settings.memory_bytes", lambda: 64 * 2**30)
    assert settings.effective_compile_memory_bytes == 4 * 2**30
    given = {"workers": "1", "compile_cpu_s": "7", "compile_memory_bytes": "9GiB"}
    settings = load(given, HOME).settings
    assert settings.effective_workers == 1
    assert settings.effective_compile_cpu_s == 7
    assert settings.effective_compile_memory_bytes == 9 * 2**30
