"""What can be wrong with a request itself: its module, its engine, target and settings."""

from __future__ import annotations

from collections.abc import Iterable

from wasmkilnd.errors.core import Reason, WasmkilnError, quoted


def invalid_request(message: str, field: str, **metadata: int) -> WasmkilnError:
    """The request itself is malformed."""
    error = WasmkilnError(Reason.INVALID_REQUEST, message, field=field)
    error.metadata |= {name: str(value) for name, value in metadata.items()}
    return error


def not_wasm(what: str) -> WasmkilnError:
    """The bytes are not a WebAssembly binary; ``what`` says what they are."""
    return WasmkilnError(Reason.NOT_WASM, what, field="module")


def module_too_large(size_bytes: int, limit_bytes: int) -> WasmkilnError:
    """The module is above the size limit."""
    return WasmkilnError(
        Reason.MODULE_TOO_LARGE,
        f"the module has {size_bytes:,} bytes and the limit is {limit_bytes:,}:"
        " send a smaller one, or raise WASMKILN_MAX_MODULE_BYTES",
        field="module",
        size_bytes=size_bytes,
        limit_bytes=limit_bytes,
    )


def digest_mismatch(expected: str, actual: str) -> WasmkilnError:
    """The module does not have the digest that the caller expects."""
    return WasmkilnError(
        Reason.DIGEST_MISMATCH,
        f"the module's SHA-256 is {actual}, not the expected {expected}: send the module that it"
        " belongs to, or correct expected_sha256",
        field="expected_sha256",
        expected_sha256=expected,
        actual_sha256=actual,
    )


def engine_unknown(engine: str, valid: Iterable[str]) -> WasmkilnError:
    """The daemon serves no engine of this name."""
    engines = ", ".join(valid)
    return WasmkilnError(
        Reason.ENGINE_UNKNOWN,
        f"this daemon serves no engine {quoted(engine)}: choose one of: {engines or 'none'}",
        field="engine",
        engine=engine,
        engines=engines,
    )


def engine_removed(engine: str, valid: Iterable[str]) -> WasmkilnError:
    """The daemon served this engine, until an operator removed it."""
    engines = ", ".join(valid)
    return WasmkilnError(
        Reason.ENGINE_REMOVED,
        f"{quoted(engine)} was removed from this daemon: choose one of: {engines or 'none'}; or"
        " an operator installs it again and reloads the daemon",
        field="engine",
        engine=engine,
        engines=engines,
    )


def target_unsupported(engine_id: str, target: str, valid: Iterable[str]) -> WasmkilnError:
    """The engine does not compile for the target."""
    targets = ", ".join(valid)
    return WasmkilnError(
        Reason.TARGET_UNSUPPORTED,
        f"{engine_id} does not compile for target {quoted(target)}: choose one of: {targets}",
        field="target",
        engine=engine_id,
        target=target,
        targets=targets,
    )


def cpu_unsupported(engine_id: str, target: str, cpu: str, valid: Iterable[str]) -> WasmkilnError:
    """The target has no such cpu level."""
    cpus = ", ".join(valid)
    return WasmkilnError(
        Reason.TARGET_UNSUPPORTED,
        f"{engine_id} has no cpu level {quoted(cpu)} for {target}: choose one of: {cpus}",
        field="cpu",
        engine=engine_id,
        target=target,
        cpu=cpu,
        cpus=cpus,
    )


def setting_unknown(engine_id: str, setting: str, valid: Iterable[str]) -> WasmkilnError:
    """The engine has no such setting."""
    settings = ", ".join(valid)
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} has no setting {quoted(setting)}: choose from: {settings or 'none'}",
        field="settings",
        engine=engine_id,
        setting=setting,
        allowed=settings,
    )


def setting_value_unknown(
    engine_id: str, setting: str, value: str, valid: Iterable[str]
) -> WasmkilnError:
    """The engine's setting has no such value."""
    allowed = ", ".join(valid)
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} has no value {quoted(value)} for setting {quoted(setting)}:"
        f" choose one of: {allowed}",
        field="settings",
        engine=engine_id,
        setting=setting,
        value=value,
        allowed=allowed,
    )


def settings_refused(engine_id: str, message: str) -> WasmkilnError:
    """Each setting is known, but the engine refuses them together."""
    return WasmkilnError(
        Reason.SETTING_UNKNOWN,
        f"{engine_id} refuses this combination of settings: {message}",
        field="settings",
        engine=engine_id,
    )


def module_not_loaded(sha256: str) -> WasmkilnError:
    """The daemon has no module with this digest."""
    return WasmkilnError(
        Reason.MODULE_NOT_LOADED,
        f"this daemon has not loaded module {sha256}: send the module itself",
        field="sha256",
        sha256=sha256,
    )
