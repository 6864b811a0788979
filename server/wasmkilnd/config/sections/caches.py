"""What each tier of the cache holds, for how long, and how Redis is reached."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr

from wasmkilnd.config.values.redis_url import RedisUrl
from wasmkilnd.config.values.types import (
    DAY_S,
    GIB,
    LIVE,
    MIB,
    KeyPrefix,
    OptionalFile,
    RedisLocation,
    Seconds,
    Secret,
    Size,
    Switch,
    Text,
    WholeSeconds,
)


class CacheSettings(BaseModel):
    """What each tier of the cache holds, for how long, and how Redis is reached."""

    redis_url: RedisLocation = Field(
        default=RedisUrl(""),
        description="The Redis tier: redis://, rediss:// (TLS) or unix:// for a server;"
        " redis+sentinel:// or rediss+sentinel://; redis+cluster:// or rediss+cluster://;"
        " https:// for Upstash's REST API; none for memory only; empty for the embedded server."
        " If it is not set, the daemon takes UPSTASH_REDIS_URL or UPSTASH_REDIS_REST_URL. Put a URL"
        " with a password into the environment or the file: other users of the machine can read"
        " flags.",
    )
    redis_password: Secret = Field(
        default=SecretStr(""),
        description="The password of the URL's user, or the token of an https:// URL, if the"
        " URL does not hold it. If it is not set, the daemon takes UPSTASH_REDIS_TOKEN or"
        " UPSTASH_REDIS_REST_TOKEN for an https:// URL.",
        json_schema_extra=LIVE,
    )
    redis_password_file: OptionalFile = Field(
        default="",
        description="A file that holds the password or token instead. The daemon reads it again"
        " for each connection, so that it can change while the daemon runs.",
        json_schema_extra=LIVE,
    )
    redis_ca_file: OptionalFile = Field(
        default="",
        description="A PEM file of the certificate authorities to check Redis's certificate"
        " against; empty for the system's.",
        json_schema_extra=LIVE,
    )
    redis_sentinel_user: Text = Field(
        default="",
        description="The user name for the Sentinels, if they ask for one; the URL's user is for"
        " the primary.",
        json_schema_extra=LIVE,
    )
    redis_sentinel_password: Secret = Field(
        default=SecretStr(""),
        description="The password for the Sentinels, if they ask for one.",
        json_schema_extra=LIVE,
    )
    redis_timeout_s: Seconds = Field(
        default=1.0,
        gt=0,
        description="How long to wait for each step of Redis: to accept a connection, to take a"
        " command, or to answer it. The first call that meets a Redis that hangs waits about this"
        " long; later calls do not wait. No call waits for writes: all steps of one write together"
        " may take 10 s, or this long if that is longer.",
    )
    redis_retry_max_s: Seconds = Field(
        default=10.0,
        gt=0,
        description="The longest pause between two attempts to reach a Redis that does not"
        " answer. The first pause is 0.25 s, and each one is twice as long as the one before.",
    )
    redis_prefix: KeyPrefix = Field(
        default="wasm:", description="What every key in Redis begins with."
    )
    embedded_redis_bytes: Size = Field(
        default=GIB,
        ge=4 * MIB,
        description="Memory that the embedded server may fill; it then drops the least recently"
        " used entries. The daemon that starts the server decides for all that share it.",
    )
    cache_ttl_s: WholeSeconds = Field(
        default=7 * DAY_S, gt=0, description="How long an entry stays in Redis."
    )
    cache_ttl_refresh: Switch = Field(
        default=False,
        description="Keep an entry for cache_ttl_s after its last use, instead of after it was"
        " stored.",
    )
    compile_lease_s: Seconds = Field(
        default=5.0,
        ge=0,
        description="Of the daemons on one Redis, one compiles an artifact and the others wait"
        " for it. When that daemon dies, another takes over after this time. With 0, each daemon"
        " compiles for itself.",
    )
    write_queue_bytes: Size = Field(
        default=0,
        ge=0,
        description="Bytes that may wait to be written to Redis, and as many for the host store;"
        " above that the daemon drops the oldest artifacts, then the oldest modules, and logs it. 0"
        " for max_module_bytes plus max_artifact_bytes, and at least 64 MiB. The newest module and"
        " its newest artifact always wait, whatever their sizes.",
        json_schema_extra=LIVE,
    )
    memory_bytes: Size = Field(
        default=256 * MIB,
        ge=0,
        description="Memory that the tier in the daemon itself may fill; with 0 it keeps nothing.",
        json_schema_extra=LIVE,
    )
