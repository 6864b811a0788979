"""Convert the settings to the options of cache and engines, which do not know ``Settings``."""

from __future__ import annotations

from wasmkilnd.cache.host_store import HostOptions
from wasmkilnd.cache.object_store import Bucket
from wasmkilnd.redis.servers import RedisAccess
from wasmkilnd.settings import GIB, Settings, group_id


def host_options(settings: Settings) -> HostOptions:
    """Return the options of the host store."""
    return HostOptions(
        root=settings.effective_host_store_dir,
        limit_bytes=settings.effective_host_store_bytes,
        group=group_id(settings.host_store_group),
    )


def open_bucket(settings: Settings, url: str = "") -> Bucket | None:
    """Return the way to the object store at ``url``, or that of the settings; None for none.

    It may take a second: call it in a thread, where one is wanted. Raises CannotUse.
    """
    if not (url := url or settings.object_store_url):
        return None
    return Bucket(
        url,
        timeout_s=settings.object_store_timeout_s,
        largest_bytes=max(settings.max_artifact_bytes, GIB),  # No policy allows larger modules.
    )


def redis_access(settings: Settings) -> RedisAccess:
    """Return the credentials and certificates for Redis, besides the URL."""
    return RedisAccess(
        ca_file=settings.redis_ca_file,
        password=settings.redis_password.get_secret_value(),
        password_file=settings.redis_password_file,
    )
