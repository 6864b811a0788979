"""Build all files of a release into dist/: the same sources give the same bytes.

wasmkiln-VERSION-py3-none-any.whl     the wheel
wasmkiln-VERSION.tar.gz               the sources; the same wheel can be built from them
wasmkiln-VERSION-requirements.txt     the daemon and all that it needs, each by its SHA-256
wasmkiln-VERSION.cdx.json             the bill of materials, as it lies in the wheel
wasmkiln-VERSION-licences.md          the licences of what is installed with it
wasmkiln-VERSION-changes.md           this version's section of CHANGELOG.md
wasmkiln-chart-VERSION.tgz            the Helm chart
wasmkiln-protos-VERSION.tar.gz        the contract, and wasmkiln.binpb, its descriptor set
SHA256SUMS                            of all the others

``python -m scripts.release [FOLDER]`` writes them; `make dist` runs it. The dates in the archives
are those of the last commit, or SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from scripts import dist_protos, licences
from scripts.archive import packed
from scripts.sbom import bill
from scripts.version import ROOT, version_of

CHART = ROOT / "deploy" / "helm" / "wasmkiln"
SUMS = "SHA256SUMS"


class NotReadyError(Exception):
    """The sources are not ready for a release; the text says why and what to do."""


def changes(changelog: str, version: str) -> str:
    """Return a version's section of the changelog, without its heading."""
    parts = re.split(r"^## (.+)$", changelog, flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        if heading.split(",")[0].strip() == version:
            if not text.strip():
                raise NotReadyError(f"the section {heading!r} of CHANGELOG.md is empty: fill it")
            return text.strip() + "\n"
    raise NotReadyError(f"CHANGELOG.md has no section '## {version}': write what changed")


def build(folder: Path) -> list[Path]:
    """Write all files into ``folder``, and remove what else lies there; return them, sums last."""
    version = version_of(ROOT)
    text = changes((ROOT / "CHANGELOG.md").read_text(), version)
    found = list(licences.packages())
    if wrong := [why for each in found if (why := licences.refused(each))]:
        raise NotReadyError("; ".join(wrong))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel, sources = build_packages(folder, version)
    name = f"wasmkiln-{version}"
    written = {
        f"{name}-requirements.txt": requirements(version, [wheel, sources]),
        f"{name}.cdx.json": _bill(wheel),
        f"{name}-licences.md": licences.report(found).encode(),
        f"{name}-changes.md": text.encode(),
        f"wasmkiln-chart-{version}.tgz": chart(),
    }
    for file, content in written.items():
        (folder / file).write_bytes(content)
    dist_protos.main(folder)
    files = sorted(folder.iterdir())
    lines = [f"{_sha256(file)}  {file.name}\n" for file in files]
    (folder / SUMS).write_text("".join(lines))
    return [*files, folder / SUMS]


def build_packages(folder: Path, version: str, root: Path = ROOT) -> tuple[Path, Path]:
    """Build the wheel and the archive of the sources at ``root``; return both."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder.absolute())],
        cwd=root,
        env={**os.environ, "SOURCE_DATE_EPOCH": _date(root)},
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return folder / f"wasmkiln-{version}-py3-none-any.whl", folder / f"wasmkiln-{version}.tar.gz"


def requirements(version: str, files: list[Path]) -> bytes:
    """Return the lock file of the daemon, with the release itself on top."""
    lock = needed((ROOT / "requirements" / "server.txt").read_text())
    hashes = " \\\n".join(f"    --hash=sha256:{_sha256(file)}" for file in files)
    return (
        f"# Installs wasmkiln {version} and the versions that it was tested with:\n"
        f"#   pip install --require-hashes -r wasmkiln-{version}-requirements.txt\n"
        f"wasmkiln[server]=={version} \\\n{hashes}\n{lock}"
    ).encode()


def needed(lock: str) -> str:
    """Return a lock file without what only builds the package."""
    parts = {each["name"] for each in bill("0", lock, ())["components"]}
    head, *blocks = re.split(r"^(?=[a-z0-9-]+==)", lock, flags=re.MULTILINE)
    return head + "".join(block for block in blocks if block.split("==")[0] in parts)


def chart() -> bytes:
    """Return the Helm chart as `helm package` packs it, without the values of the tests."""
    files = {str(path.relative_to(CHART)): path for path in CHART.rglob("*") if path.is_file()}
    return packed(
        "wasmkiln",
        {name: path.read_bytes() for name, path in files.items() if not name.startswith("ci/")},
    )


def _bill(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".cdx.json")]
        return archive.read(name)


def _date(root: Path) -> str:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return given
    # An archive of the sources has no history: then hatchling's own date is as good as any.
    return git(root, "log", "-1", "--format=%ct") or "1580601600"


def git(root: Path, *words: str) -> str:
    """Return what git prints; nothing if it fails or is missing."""
    program = shutil.which("git")
    if program is None:
        return ""
    done = subprocess.run(
        [program, "-C", str(root), *words], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def main(folder: Path) -> int:
    """Build, and say what was built; return the exit code."""
    try:
        files = build(folder)
    except NotReadyError as problem:
        print(f"cannot build the release: {problem}", file=sys.stderr)
        return 1
    for file in files:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
