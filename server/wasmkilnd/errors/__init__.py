"""What can go wrong with a caller's request, in words for the caller.

Every failure that a caller sees is one ``WasmkilnError``: a ``Reason`` (public: it travels as
``ErrorInfo.reason``), one sentence that says what is wrong and what to do, and metadata. A part
of the daemon never builds one by hand; it calls a function of this package:
``errors.module_too_large(size, limit)``.

| file | errors |
|---|---|
| ``core`` | ``WasmkilnError``, ``Reason``, ``Fault``, and how a caller's text is quoted |
| ``requests`` | the request: its module, engine, target, settings |
| ``compiling`` | the compilation: a module that is refused, a job that broke |
| ``access`` | callers without the right to call, or with their quota used up |
| ``overload`` | limits that protect callers from each other; a daemon that shuts down |
| ``pins`` | a module that is pinned, or cannot be |
| ``tiers`` | a cache tier that does not answer; the daemon handles it, no caller sees it |

Nothing here knows gRPC: ``rpc/wire/status.py`` maps each reason to a status code, in one table.

``Fault`` says whether a failure counts against its module: see ``quarantine``. A reason, its
metadata and its status code are a promise to callers in every language; the sentences are not.

CONTRIBUTING.md lists the files that a new reason touches.
"""

from wasmkilnd.errors.access import (
    credentials_invalid,
    credentials_missing,
    default_namespace_only,
    namespace_closed,
    not_in_the_table,
    only_hits,
    quota_exceeded,
    role_missing,
)
from wasmkilnd.errors.compiling import (
    artifact_too_large,
    compile_cpu_timeout,
    compile_memory_limit,
    compile_timeout,
    compiler_crashed,
    engine_lacks_feature,
    fast_compiler_lacks_feature,
    module_invalid,
    module_quarantined,
    worker_unavailable,
)
from wasmkilnd.errors.core import (
    FROM_OUTSIDE,
    Fault,
    Reason,
    WasmkilnError,
    forget_frames,
    quoted,
)
from wasmkilnd.errors.overload import (
    compile_queue_full,
    deadline_too_near,
    modules_held,
    out_of_descriptors,
    reader_too_slow,
    receiving_too_much,
    request_too_slow,
    sending_too_much,
    server_draining,
    too_many_calls,
    too_many_connections,
)
from wasmkilnd.errors.pins import module_pinned, nothing_to_pin, pins_full, too_many_pins
from wasmkilnd.errors.requests import (
    cpu_unsupported,
    digest_mismatch,
    engine_removed,
    engine_unknown,
    invalid_request,
    module_not_loaded,
    module_too_large,
    not_wasm,
    setting_unknown,
    setting_value_unknown,
    settings_refused,
    target_unsupported,
)
from wasmkilnd.errors.tiers import (
    DoesNotFit,
    PartUnavailable,
    TierUnavailable,
    WrongType,
)

__all__ = [
    "FROM_OUTSIDE",
    "DoesNotFit",
    "Fault",
    "PartUnavailable",
    "Reason",
    "TierUnavailable",
    "WasmkilnError",
    "WrongType",
    "artifact_too_large",
    "compile_cpu_timeout",
    "compile_memory_limit",
    "compile_queue_full",
    "compile_timeout",
    "compiler_crashed",
    "cpu_unsupported",
    "credentials_invalid",
    "credentials_missing",
    "deadline_too_near",
    "default_namespace_only",
    "digest_mismatch",
    "engine_lacks_feature",
    "engine_removed",
    "engine_unknown",
    "fast_compiler_lacks_feature",
    "forget_frames",
    "invalid_request",
    "module_invalid",
    "module_not_loaded",
    "module_pinned",
    "module_quarantined",
    "module_too_large",
    "modules_held",
    "namespace_closed",
    "not_in_the_table",
    "not_wasm",
    "nothing_to_pin",
    "only_hits",
    "out_of_descriptors",
    "pins_full",
    "quota_exceeded",
    "quoted",
    "reader_too_slow",
    "receiving_too_much",
    "request_too_slow",
    "role_missing",
    "sending_too_much",
    "server_draining",
    "setting_unknown",
    "setting_value_unknown",
    "settings_refused",
    "target_unsupported",
    "too_many_calls",
    "too_many_connections",
    "too_many_pins",
    "worker_unavailable",
]
