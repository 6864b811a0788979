"""Upstash's variables, other Redis settings, and what does not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import SecretStr
from wasmkilnd.settings_loader import ConfigError, LoadedSettings, as_json, load, render

URL = "https://name.upstash.example"


def loaded(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> LoadedSettings:
    """Load them, for a user who has a home."""
    return load(flags or {}, {"HOME": "/h", **environ})


def redis_of(environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> tuple[str, str]:
    """Return URL and password."""
    settings = loaded(environ, flags).settings
    return settings.redis_url.get_secret_value(), settings.redis_password.get_secret_value()


def test_upstashs_variables_are_enough() -> None:
    environ = {"UPSTASH_REDIS_URL": URL, "UPSTASH_REDIS_TOKEN": "tok"}
    assert redis_of(environ) == (URL, "tok")
    origins = loaded(environ).origins
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


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"redis_url": URL}, "redis_url .*: https:// needs a token"),
        ({"redis_url": "redis://:a@h", "redis_password_file": "/f"}, "password is given twice"),
        ({"redis_url": "redis://h", "redis_ca_file": "/f"}, "redis:// is not encrypted"),
        ({"redis_url": "unix:///s", "redis_ca_file": "/f"}, "unix:// is not encrypted"),
        ({"redis_url": "redis://h", "redis_ca_file": "a\0b"}, "expected a path"),
    ],
)
def test_what_does_not_go_together_is_told(given: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        loaded({}, given)


def test_a_password_twice_is_told_without_it() -> None:
    with pytest.raises(ConfigError, match=r"redis_password .env WASMKILN_REDIS_PASSWORD.") as told:
        loaded({"WASMKILN_REDIS_PASSWORD": "hunter2"}, {"redis_url": "redis://:hunter3@h"})
    assert "hunter" not in str(told.value)


def test_files_are_paths_from_here() -> None:
    settings = loaded({}, {"redis_url": "rediss://h", "redis_ca_file": "ca.pem"}).settings
    assert settings.redis_ca_file.startswith("/")
    assert loaded({}, {"redis_ca_file": " "}).settings.redis_ca_file == ""


@pytest.mark.parametrize("shown_by", [render, as_json])
def test_what_is_shown_holds_no_secret(shown_by: Any) -> None:
    shown = shown_by(loaded({"UPSTASH_REDIS_URL": URL, "UPSTASH_REDIS_TOKEN": "hunter2"}))
    assert "hunter" not in shown
    assert str(SecretStr("x")) in shown
    assert URL in shown
