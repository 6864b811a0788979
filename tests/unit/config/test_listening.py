"""Where a daemon may listen: TLS and identities on a network, and settings that go together."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import ConfigError, load

HOME = {"HOME": "/home/kiln"}
TLS = {"tls_cert_file": "/c", "tls_key_file": "/k"}
REMOTE = "0.0.0.0:1"


def refused(**given: object) -> str:
    """Return the only problem of these settings."""
    with pytest.raises(ConfigError) as caught:
        load(given, HOME)  # type: ignore[arg-type]
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("field", ["listen", "admin_listen"])
def test_a_network_needs_tls_and_identities(field: str, tmp_path: Path) -> None:
    given: dict[str, object] = {field: REMOTE, "state_dir": str(tmp_path)}
    line = refused(**given)
    assert line.startswith(
        f"{field} (flag --{field.replace('_', '-')}): other machines can reach {REMOTE}, which"
        " needs TLS (tls_cert_file, tls_key_file) and identities (tls_client_ca_file,"
    )
    assert "allow_remote" in line
    line = refused(**given, **TLS)
    assert "needs identities (" in line
    assert "needs TLS" not in line
    line = refused(**given, policy_file="/p")
    assert "needs TLS (" in line
    assert "identities" not in line
    for source in ("policy_file", "tls_client_ca_file"):
        load({**given, **TLS, source: "/x"}, HOME)  # type: ignore[dict-item]
    load({**given, "allow_remote": True}, HOME)  # type: ignore[dict-item]
    (tmp_path / "access").mkdir()
    (tmp_path / "access" / "tokens.json").write_text("{}")
    load({**given, **TLS}, HOME)  # type: ignore[dict-item]


@pytest.mark.parametrize("field", ["token_listen", "operator_listen"])
def test_tokens_and_operators_need_tls_on_a_network_in_any_case(field: str) -> None:
    line = refused(**{field: REMOTE, "allow_remote": True, "policy_file": "/p"})
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
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, object], problem: str) -> None:
    assert refused(**given) == problem


def test_a_tokens_file_that_cannot_be_looked_at_may_be_there(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    assert not settings.has_tokens_file
    settings.tokens_file.parent.mkdir()
    settings.tokens_file.symlink_to(settings.tokens_file)
    assert settings.has_tokens_file
    assert settings.needs_identities
    (tmp_path / "file").touch()
    assert not Settings(state_dir=tmp_path / "file").has_tokens_file
