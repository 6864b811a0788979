"""Fast code first: the optimised compile behind an artifact of a fast compiler.

"Optimised" is what a call gets without ``accept_fast``; "fast" is the same but for the setting that
chooses the engine's fast compiler. What a call with ``accept_fast`` gets, where the first case that
fits counts:

1. It names the setting itself, or the engine has no fast compiler: as without ``accept_fast``.
2. It skips the look-up: both are compiled anew, as in case 5.
3. A tier has the optimised artifact: that one.
4. A tier has the fast one: that one, and the optimised one is compiled behind. This needs no module
   in a tier; without one, nothing is compiled behind.
5. No tier has either: the fast one is compiled now, in a flight like any other. When it is there,
   the optimised one is compiled behind, even if every caller has left. This holds too while an
   optimised compile waits or runs: nobody knows how long it takes.
6. The fast compile fails, and the optimised one may not (``MAY_SUCCEED_OPTIMISED``): the optimised
   one, in the same call, as without ``accept_fast``. The failure counts against the fast
   fingerprint only. So a module in quarantine for the fast compiler goes here at once.
7. The fast compile fails for a reason that concerns both, such as a full queue or an invalid
   module: that error.

An optimised compile that fails behind, or that the quarantine refuses, costs no caller anything:
the fast artifact goes on serving. It is not tried again for a while.
"""

from __future__ import annotations

import structlog

from wasmkilnd.errors import Reason, WasmkilnError
from wasmkilnd.model import CompileSpec

log = structlog.get_logger("wasmkilnd")

MAY_SUCCEED_OPTIMISED = frozenset(
    {
        Reason.ENGINE_LACKS_FEATURE,
        Reason.SETTING_UNKNOWN,  # the engine refuses it together with another setting
        Reason.COMPILER_CRASHED,
        Reason.COMPILE_TIMEOUT,
        Reason.COMPILE_MEMORY_LIMIT,
        Reason.ARTIFACT_TOO_LARGE,  # fast code is larger
        Reason.MODULE_QUARANTINED,
    }
)


def optimised_may_succeed(spec: CompileSpec, module_sha256: str, failure: WasmkilnError) -> bool:
    """Return whether to compile optimised code after a fast compile failed; log that it did."""
    if failure.reason not in MAY_SUCCEED_OPTIMISED:
        return False
    log.info(
        "fast code not made",
        module=module_sha256,
        engine=spec.engine.id,
        reason=failure.reason.value,
        cause=failure.message,
    )
    return True
