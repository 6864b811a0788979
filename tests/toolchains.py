"""What groups of tests need of the system, and the Debian packages that have it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

EVERYTHING = "all"


@dataclass(frozen=True)
class Toolchains:
    """What each of several toolchains needs, and a way to install what is missing."""

    needs: Mapping[str, Mapping[str, str]]
    """By toolchain: each need with the Debian package that has it.

    A need is a program on PATH, or the path of a file. It is there however it was installed.
    """
    variable: str
    """The environment variable that is ``all`` where a missing toolchain is a failure."""

    def missing(self, *names: str) -> dict[str, str]:
        """Return what these toolchains lack, with the packages that have it."""
        return {
            need: package
            for name in names
            for need, package in self.needs[name].items()
            if not _is_there(need)
        }

    def demand(self, name: str) -> None:
        """Skip the test if a toolchain is missing; fail it where all must be there."""
        if needed := self.missing(name):
            packages = " ".join(sorted(set(needed.values())))
            self.give_up(
                f"cannot use {name}: missing {', '.join(needed)}; apt-get install {packages}"
            )

    def give_up(self, why: str) -> NoReturn:
        """Skip the test; fail it where everything must be there."""
        if os.environ.get(self.variable) == EVERYTHING:
            pytest.fail(why)
        pytest.skip(why)

    def install(self) -> str:
        """Install what is missing. Return "" or a sentence that says why it is still missing."""
        if needed := self.missing(*self.needs):
            if problem := _install(needed):
                return problem
            if left := self.missing(*self.needs):
                return f"cannot find {', '.join(left)}, though apt-get has installed it"
        return ""


def _install(needed: Mapping[str, str]) -> str:
    packages = sorted(set(needed.values()))
    what = f"cannot install {', '.join(needed)}"
    if shutil.which("apt-get") is None:
        return f"{what}: this system has no apt-get; install them in its own way"
    if os.geteuid() != 0:
        return f"{what}: only root can; run: sudo apt-get install {' '.join(packages)}"
    print(f"installing {' '.join(packages)}", flush=True)
    words = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=600"]
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            [*words, *step], env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
            return f"{what}: apt-get {step[0]} says: {''.join(last)}"
    return ""


def _is_there(need: str) -> bool:
    return Path(need).exists() if need.startswith("/") else shutil.which(need) is not None
