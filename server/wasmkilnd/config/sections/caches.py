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
        " Where it is not set, UPSTASH_REDIS_URL or UPSTASH_REDIS_REST_URL is taken. Put a URL"
        " with a password into the environment or the file: others on the machine can read"
        " flags.",
    )
    redis_password: Secret = Field(
        default=SecretStr(""),
        description="The password of the URL's user, or the token of an https:// URL, where the"
        " URL does not hold it. For an https:// URL, UPSTASH_REDIS_TOKEN or"
        " UPSTASH_REDIS_REST_TOKEN is taken where it is not set.",
        json_schema_extra=LIVE,
    )
    redis_password_file: OptionalFile = Field(
        default="",
        description="A file that holds the password or token instead. It is read again for"
        " each connection, so that it can change while the daemon runs.",
        json_schema_extra=LIVE,
    )
    redis_ca_file: OptionalFile = Field(
        default="",
        description="Certificates in PEM of the authorities that Redis's certificate is checked"
        " against; empty for the system's.",
        json_schema_extra=LIVE,
    )
    redis_sentinel_user: Text = Field(
        default="",
        description="The user to be at the Sentinels, where they ask for one: the URL's is that"
        " at the primary.",
        json_schema_extra=LIVE,
    )
    redis_sentinel_password: Secret = Field(
        default=SecretStr(""),
        description="The password at the Sentinels, where they ask for one.",
        json_schema_extra=LIVE,
    )
    redis_timeout_s: Seconds = Field(
        default=1.0,
        gt=0,
        description="How long to wait for Redis to accept a connection, to answer, or to take a"
        " write. A call that meets a sick Redis waits about this long; those after it do not.",
    )
    redis_retry_max_s: Seconds = Field(
        default=10.0,
        gt=0,
        description="While Redis does not answer, it is asked whether it is back after 0.25 s, and"
        " then twice as long each time, up to this.",
    )
    redis_prefix: KeyPrefix = Field(
        default="wasm:", description="What every key in Redis begins with."
    )
    embedded_redis_bytes: Size = Field(
        default=GIB,
        ge=4 * MIB,
        description="Memory that the embedded server may fill; the least recently used entries"
        " then make room. The daemon that starts the server decides it, for all that share it.",
    )
    cache_ttl_s: WholeSeconds = Field(
        default=7 * DAY_S, gt=0, description="How long an entry stays in Redis."
    )
    cache_ttl_refresh: Switch = Field(
        default=False,
        description="Let an entry that is used stay for cache_ttl_s from then on, rather than"
        " from when it was stored.",
    )
    compile_lease_s: Seconds = Field(
        default=5.0,
        ge=0,
        description="Daemons on one Redis compile each artifact once: the others wait for it."
        " When the one that compiles dies, another takes over after this time. 0 lets each"
        " compile for itself.",
    )
    write_queue_bytes: Size = Field(
        default=0,
        ge=0,
        description="Bytes that may wait to be written to Redis; when they are more, the oldest"
        " artifacts, and then the oldest modules, are not written, which the log tells. 0 for"
        " max_module_bytes and max_artifact_bytes together, and 64 MiB at least. The newest module"
        " with its newest artifact waits whatever their sizes.",
        json_schema_extra=LIVE,
    )
    memory_bytes: Size = Field(
        default=256 * MIB,
        ge=0,
        description="Memory that the daemon's own tier may fill; 0 keeps nothing.",
        json_schema_extra=LIVE,
    )
