"""Upstash's own variables, which fill the Redis settings that are not set otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_URLS = ("UPSTASH_REDIS_URL", "UPSTASH_REDIS_REST_URL")
_TOKENS = ("UPSTASH_REDIS_TOKEN", "UPSTASH_REDIS_REST_TOKEN")


def from_upstash(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable to take for each setting that ``given`` leaves open.

    A token is taken for a REST URL only: any other server must not see it.
    """
    taken = {}
    url = given.get("redis_url")
    if url is None:
        for name in _URLS:
            if environ.get(name):
                taken["redis_url"], url = name, environ[name]
                break
    rest = isinstance(url, str) and url.strip().startswith(("https://", "http://"))
    has_token = "@" in str(url) or given.get("redis_password") or given.get("redis_password_file")
    if rest and not has_token:
        for name in _TOKENS:
            if environ.get(name):
                taken["redis_password"] = name
                break
    return taken
