"""``make demo``: a real module, both engines, and what each tier saves."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

# Started as a file, Python looks for imports beside it; as a module, this changes nothing.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from wasmkiln import WasmkilnError

from bench.demo_steps import Engine, compile_cold, hit, join, run_artifact
from bench.demo_view import Timings, show_engine, show_result, show_table, show_title
from bench.lab import (
    ENGINE_NAMES,
    BenchError,
    Daemon,
    come_to_rest,
    engines_in,
    make_state,
    user_state_dir,
)
from tests.corpus.fetch import CorpusMismatch, CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME

MODULE = "quickjs-wasi"
CALLERS = 20


def main() -> int:
    """Run the demo. Answers the exit code; every failure is one sentence."""
    console = Console(highlight=False)
    try:
        _demonstrate(console)
    except (BenchError, CorpusUnavailable, CorpusMismatch, WasmkilnError) as failure:
        print(f"demo: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _demonstrate(console: Console) -> None:
    state_dir = user_state_dir()
    installed = engines_in(state_dir)
    missing = [name for name in ENGINE_NAMES if name not in installed]
    if missing:
        raise BenchError(
            f"no {' and no '.join(missing)} under {state_dir}: run `wasmkilnd engine install` first"
        )
    module = BY_NAME[MODULE]
    show_title(console, module)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wasmkiln-demo-")))
        status = stack.enter_context(console.status(f"getting {module.requirement}"))
        wasm = fetch(module)
        state = make_state(folder / "state", installed)
        engines = [Engine(each, folder / f"{each.name}.artifact") for each in installed.values()]
        timings = {engine.id: Timings() for engine in engines}

        status.update("starting a daemon of its own")
        with Daemon(state, "--host-store-bytes", "0") as daemon, daemon.client() as client:
            for engine in engines:
                status.update(f"{engine.id} compiles {MODULE}")
                seconds, artifact = compile_cold(client, engine, wasm)
                timings[engine.id].cold_s = seconds
                show_engine(console, engine.id, seconds, artifact)
                status.update(f"another process loads it into {engine.id}")
                show_result(console, *run_artifact(engine, MODULE))
            for engine in engines:
                status.update(f"{CALLERS} callers at once want it from {engine.id}")
                timings[engine.id].joined_s, timings[engine.id].joined = join(
                    client, engine, wasm, CALLERS
                )
                timings[engine.id].memory_s = hit(client, engine, module.sha256, "memory")
            come_to_rest(client)

        status.update("restarting the daemon")
        with Daemon(state, "--host-store-bytes", "0") as daemon, daemon.client() as client:
            for engine in engines:
                timings[engine.id].redis_s = hit(client, engine, module.sha256, "redis")
            status.update("stopping")
    show_table(console, timings, CALLERS)


if __name__ == "__main__":
    sys.exit(main())
