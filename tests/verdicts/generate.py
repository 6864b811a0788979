"""Generated modules, the same for the same seed: by wasm-tools, and by damaging bytes."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.corpus.fetch import fetch
from tests.corpus.modules import BY_NAME
from tests.e2e.wasm import WASM_TOOLS

_SEED_BYTES = 2_000
"""How many bytes smith makes a module from; the module gets about as many."""

# What wasmer 1.1.0 lacks is switched off, or next to none of the modules would be valid for it.
_OF_2021 = [
    f"--{feature}-enabled=false"
    for feature in (
        "compact-imports",
        "custom-descriptors",
        "custom-page-sizes",
        "exceptions",
        "extended-const",
        "gc",
        "memory64",
        "relaxed-simd",
        "shared-everything-threads",
        "tail-call",
        "threads",
        "wide-arithmetic",
    )
] + ["--max-memories=1"]

# The small ones of the corpus, since each is compiled a thousand times.
_PUBLISHED = ("as-sha256", "rabin", "as-sha256-simd", "source-map")

PROFILES: dict[str, Sequence[str]] = {
    "everything": (),
    "of-2021": _OF_2021,
    "invalid-code": ("--allow-invalid-funcs=true",),
}


def write_generated(folder: Path, count: int, seed: int = 1) -> list[Path]:
    """Write modules of every kind, ``count`` of each; return their paths.

    They are smith's of each profile, and mutations and damages of modules that people publish.
    """
    kinds = {f"smith-{profile}": smith(count, seed, profile) for profile in PROFILES}
    share = -(-count // len(_PUBLISHED))
    published = [fetch(BY_NAME[name]).read_bytes() for name in _PUBLISHED]
    kinds["mutated"] = [one for module in published for one in mutate(module, share, seed)]
    kinds["damaged"] = [one for module in published for one in damage(module, share, seed)]
    folder.mkdir()
    paths = []
    for kind, modules in kinds.items():
        for number, module in enumerate(modules[:count]):
            paths.append(folder / f"{kind}-{number:05}.wasm")
            paths[-1].write_bytes(module)
    return paths


def smith(count: int, seed: int, profile: str = "everything") -> list[bytes]:
    """Return ``count`` modules by `wasm-tools smith`; valid ones, but for ``invalid-code``."""
    flags = PROFILES[profile]
    dice = random.Random(f"{profile} {seed}")
    seeds = (dice.randbytes(dice.randrange(_SEED_BYTES // 10, _SEED_BYTES)) for _ in iter(int, 1))
    return _collect(count, (([*("smith", *flags)], entropy) for entropy in seeds))


def mutate(module: bytes, count: int, seed: int) -> list[bytes]:
    """Return ``count`` variants by `wasm-tools mutate`; valid if ``module`` is."""
    return _collect(
        count,
        (
            ([*("mutate", "--seed", str(number), "-")], module)
            for number in itertools.count(seed * 1_000_000)
        ),
    )


def damage(module: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Return ``count`` copies with a few bytes changed, cut out, doubled or moved."""
    dice = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(module)
        for _ in range(dice.choice((1, 1, 1, 2, 4))):
            damaged += b"\0" * (9 - len(damaged))
            at = dice.randrange(8, len(damaged))  # Another preamble never reaches an engine.
            match dice.randrange(6):
                case 0:
                    damaged[at] = dice.randrange(256)
                case 1:
                    damaged[at] ^= 1 << dice.randrange(8)
                case 2:
                    del damaged[at:]
                case 3:
                    del damaged[at : at + dice.choice((1, 2, 8))]
                case 4:
                    damaged[at:at] = damaged[at : at + dice.choice((1, 4, 64))]
                case _:
                    damaged[at:at] = dice.randbytes(dice.choice((1, 2, 5)))
        yield bytes(damaged)


def _collect(count: int, calls: Iterator[tuple[list[str], bytes]]) -> list[bytes]:
    """Run wasm-tools until it has made ``count`` modules: some seeds make none."""
    found: list[bytes] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while len(found) < count:
            batch = list(itertools.islice(calls, count - len(found)))
            found += [made for made in pool.map(lambda call: _run(*call), batch) if made]
    return found


def _run(words: list[str], stdin: bytes) -> bytes:
    done = subprocess.run([str(WASM_TOOLS), *words], input=stdin, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""
