"""``Settings``: all sections as one schema, with checks across settings."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

from pydantic import ConfigDict, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from wasmkilnd.config.machine import cpu_count, file_system_bytes, memory_bytes
from wasmkilnd.config.sections.access import AccessSettings
from wasmkilnd.config.sections.caches import CacheSettings
from wasmkilnd.config.sections.host_store import HostStoreSettings
from wasmkilnd.config.sections.jobs import JobSettings
from wasmkilnd.config.sections.life import LifeSettings
from wasmkilnd.config.sections.queue import QueueSettings
from wasmkilnd.config.sections.serving import ServingSettings
from wasmkilnd.config.sections.tracing import TracingSettings
from wasmkilnd.config.sections.traffic import TrafficSettings
from wasmkilnd.config.values.address import Address
from wasmkilnd.config.values.collector import is_private
from wasmkilnd.config.values.listening import Listening
from wasmkilnd.config.values.redis_url import redis_conflict
from wasmkilnd.config.values.types import AUTO, GIB, MIB, NO_ADMIN, NO_DIRECTORY

ENV_PREFIX: Final = "WASMKILN_"


def env_name(field: str) -> str:
    """Return the environment variable of a setting."""
    return ENV_PREFIX + field.upper()


def flag_name(field: str) -> str:
    """Return the command line flag of a setting."""
    return "--" + field.replace("_", "-")


def has_flag(field: str) -> bool:
    """Whether a setting has a command line flag: a secret has none, as others could read it."""
    return Settings.model_fields[field].annotation is not SecretStr


def is_live(field: str) -> bool:
    """Whether a running daemon takes the setting over when it reloads."""
    extra = Settings.model_fields[field].json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("live"))


# Documentation and help show the sections from the last to the first.
class Settings(
    TracingSettings,
    LifeSettings,
    JobSettings,
    TrafficSettings,
    QueueSettings,
    HostStoreSettings,
    CacheSettings,
    AccessSettings,
    ServingSettings,
):
    """All settings of one daemon. Immutable; text and dumps hide secrets.

    Raises pydantic's ValidationError for an impossible value, without the value.
    Where 0 or "auto" stands for "as the machine has it", the ``effective_`` property of the same
    name returns the value for this machine.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    @property
    def effective_keys_dir(self) -> Path:
        """The key directory."""
        return Path(self.keys_dir) if self.keys_dir else self.state_dir / "keys"

    @property
    def tokens_file(self) -> Path:
        """The file of the tokens. Where it exists, the daemon asks callers for an identity."""
        return self.state_dir / "access" / "tokens.json"

    @property
    def has_tokens_file(self) -> bool:
        """Whether there is a file of tokens, or may be one where this user cannot look."""
        try:
            self.tokens_file.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass
        return True

    @property
    def engine_aliases(self) -> dict[str, str]:
        """The id of an engine by alias."""
        return dict(text.split("=", 1) for text in self.engine_alias)

    @property
    def effective_host_store_dir(self) -> Path:
        """The directory of the host store."""
        if self.host_store_dir in ("", NO_DIRECTORY):
            return self.state_dir / "host_store"
        return Path(self.host_store_dir)

    @property
    def effective_host_store_bytes(self) -> int:
        """Bytes that the host store may fill; 0 if it is off."""
        if self.host_store_dir == NO_DIRECTORY:
            return 0
        if self.host_store_bytes != AUTO:
            return self.host_store_bytes
        # Where the size is not known, as in /proc, using the directory fails, and says why.
        return min(4 * GIB, file_system_bytes(self.effective_host_store_dir) // 10 or 4 * GIB)

    @property
    def effective_workers(self) -> int:
        """Workers per engine."""
        return self.workers or cpu_count()

    @property
    def effective_compile_cpu_s(self) -> float:
        """CPU seconds of one compilation, its threads together."""
        return self.compile_cpu_s or self.compile_timeout_s * cpu_count()

    @property
    def effective_compile_memory_bytes(self) -> int:
        """Bytes of memory of one compilation."""
        # 4 GiB is enough for the largest honest module measured: tree-sitter-cpp, 2.4 GB.
        return self.compile_memory_bytes or min(4 * GIB, memory_bytes() // 2)

    @property
    def effective_write_queue_bytes(self) -> int:
        """Bytes that may wait to be written to the shared tier."""
        pair = self.max_module_bytes + self.max_artifact_bytes
        return self.write_queue_bytes or max(64 * MIB, pair)

    @property
    def needs_identities(self) -> bool:
        """Whether calls need an identity: as soon as there is any source of them."""
        sources = (self.policy_file, self.tls_client_ca_file, self.jwt_issuer)
        return any(sources) or self.has_tokens_file

    @model_validator(mode="after")
    def _redis_settings_agree(self) -> Self:
        conflict = redis_conflict(
            self.redis_url.get_secret_value(),
            password=bool(self.redis_password.get_secret_value()),
            password_file=bool(self.redis_password_file),
            ca_file=bool(self.redis_ca_file),
        )
        if conflict:
            field, why = conflict
            raise PydanticCustomError("redis_conflict", "{why}", {"field": field, "why": why})
        return self

    @model_validator(mode="after")
    def _addresses_agree(self) -> Self:
        conflict = Listening(
            {
                name: [Address.parse(text) for text in getattr(self, name)]
                for name in ("listen", "token_listen", "operator_listen")
            },
            None if self.admin_listen == NO_ADMIN else Address.parse(self.admin_listen),
            cert=bool(self.tls_cert_file),
            key=bool(self.tls_key_file),
            client_ca=bool(self.tls_client_ca_file),
            identities=self.needs_identities,
            allow_remote=self.allow_remote,
        ).conflict()
        if conflict:
            field, why = conflict
            raise PydanticCustomError("address_conflict", "{why}", {"field": field, "why": why})
        return self

    @model_validator(mode="after")
    def _the_collector_is_private(self) -> Self:
        if self.trace_headers_file and not is_private(self.trace_endpoint):
            why = "it would be sent over plaintext to another machine: use an https:// endpoint"
            raise PydanticCustomError(
                "trace_conflict", "{why}", {"field": "trace_headers_file", "why": why}
            )
        return self

    @model_validator(mode="after")
    def _the_log_has_the_audit(self) -> Self:
        if self.audit_file == "log" and self.log_level not in ("info", "debug"):
            raise PydanticCustomError(
                "audit_conflict",
                "at log_level {level} the log leaves the audit out: set log_level to info, or"
                " name a file",
                {"field": "audit_file", "level": self.log_level},
            )
        return self
