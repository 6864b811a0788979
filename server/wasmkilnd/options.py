"""Convert the settings to the options of cache, engines and rpc, which do not know ``Settings``."""

from __future__ import annotations

import grp

from wasmkilnd.cache.host_store import HostOptions
from wasmkilnd.cache.redis_servers import RedisAccess
from wasmkilnd.engines.child import sandbox
from wasmkilnd.machine import cpu_count
from wasmkilnd.model import Limits, TrafficLimits
from wasmkilnd.setting_values import MIB
from wasmkilnd.settings import Settings


def limits_of(settings: Settings) -> Limits:
    """Return the limits that ``settings`` stand for on this machine."""
    return Limits(
        module_bytes=settings.max_module_bytes,
        artifact_bytes=settings.max_artifact_bytes,
        compile_timeout_s=settings.compile_timeout_s,
        compile_cpu_s=settings.effective_compile_cpu_s,
        compile_memory_bytes=settings.effective_compile_memory_bytes,
        queue_length=settings.queue_length,
        queue_bytes=settings.receive_bytes // 2,
    )


def limits_too_low(settings: Settings) -> str:
    """Return which limits of this process are too low for a job; empty if none is."""
    return sandbox.too_low(
        settings.effective_compile_memory_bytes,
        max(1, round(settings.effective_compile_cpu_s)),
        cpu_count(),
    )


def traffic_limits(settings: Settings) -> TrafficLimits:
    """Return the limits on calls in progress."""
    return TrafficLimits(
        calls=settings.max_calls,
        receive_bytes=settings.receive_bytes,
        send_bytes=max(8 * MIB, settings.receive_bytes // 4),
        send_pinned_bytes=settings.receive_bytes,
        caller_timeout_s=settings.caller_timeout_s,
    )


def host_options(settings: Settings) -> HostOptions:
    """Return the options of the host store."""
    return HostOptions(
        root=settings.effective_host_store_dir,
        limit_bytes=settings.effective_host_store_bytes,
        group=group_id(settings.host_store_group),
    )


def redis_access(settings: Settings) -> RedisAccess:
    """Return the credentials and certificates for Redis, besides the URL."""
    return RedisAccess(
        ca_file=settings.redis_ca_file,
        password=settings.redis_password.get_secret_value(),
        password_file=settings.redis_password_file,
    )


def group_id(group: str) -> int | None:
    """Return the number of a group, None for none. Raises KeyError."""
    if group.isdecimal():
        return int(group)
    return grp.getgrnam(group).gr_gid if group else None
