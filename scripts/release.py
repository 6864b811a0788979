"""Build all files of a release into dist/: the same sources give the same bytes.

wasmkiln-VERSION-py3-none-any.whl     the wheel
wasmkiln-VERSION.tar.gz               the sources; the same wheel can be built from them
wasmkiln-VERSION-requirements.txt     the daemon and all that it needs, each by its SHA-256
wasmkiln-VERSION-changes.md           this version's section of CHANGELOG.md
wasmkiln-chart-VERSION.tgz            the Helm chart
wasmkiln-protos-VERSION.tar.gz        the contract: protos/ without buf's own files
wasmkiln.binpb                        its descriptor set, with all imports and comments
wasmkiln-VERSION.crate                the Rust client, as `cargo package` names it
wasmkiln-node-VERSION.tgz             the Node client: npm installs the file
wasmkiln-{go,java,cpp}-VERSION.tar.gz the other clients' sources
SHA256SUMS                            of all the others

`make dist` runs this. The dates in the archives are those of the last commit, or
SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from scripts.sbom import LOCKED, bill
from scripts.version import ROOT, version_of

PROTOS = ROOT / "protos"
CHART = ROOT / "deploy" / "helm" / "wasmkiln"
SUMS = "SHA256SUMS"
# The archive of each client, and the folder in it that the language's tools expect.
CLIENTS = {
    "rust": ("wasmkiln-{}.crate", "wasmkiln-{}"),
    "node": ("wasmkiln-node-{}.tgz", "package"),
    "go": ("wasmkiln-go-{}.tar.gz", "wasmkiln-go-{}"),
    "java": ("wasmkiln-java-{}.tar.gz", "wasmkiln-java-{}"),
    "cpp": ("wasmkiln-cpp-{}.tar.gz", "wasmkiln-cpp-{}"),
}


class NotReadyError(SystemExit):
    """The sources are not ready for a release; the text, which ends the program, says why."""


def changes(changelog: str, version: str) -> str:
    """Return a version's section of the changelog, without its heading."""
    head = rf"(?m)^## {re.escape(version)}(?:,.*)?$"
    _, *found = re.split(head, changelog, maxsplit=1)
    if not found:
        raise NotReadyError(f"CHANGELOG.md has no section '## {version}': write what changed")
    section = re.split(r"(?m)^## ", found[0], maxsplit=1)[0].strip()
    if not section:
        raise NotReadyError(f"the section '## {version}' of CHANGELOG.md is empty: fill it")
    return f"{section}\n"


def build(folder: Path) -> list[Path]:
    """Write all files into `folder`, and remove what else lies there; return them, sums last."""
    version = version_of(ROOT)
    text = changes((ROOT / "CHANGELOG.md").read_text(), version)
    shutil.rmtree(folder, ignore_errors=True)
    wheel, sources = build_packages(folder, version)
    name, lock = f"wasmkiln-{version}", (ROOT / "requirements" / "server.txt").read_text()
    written = {
        f"{name}-requirements.txt": requirements(version, lock, [wheel, sources]).encode(),
        f"{name}-changes.md": text.encode(),
        f"wasmkiln-chart-{version}.tgz": chart(),
        **contract(version),
        **clients(version, sources),
    }
    for file, content in written.items():
        (folder / file).write_bytes(content)
    files = sorted(folder.iterdir())
    (folder / SUMS).write_text("".join(f"{_sha256(file)}  {file.name}\n" for file in files))
    return [*files, folder / SUMS]


def build_packages(folder: Path, version: str, root: Path = ROOT) -> tuple[Path, Path]:
    """Build the wheel and the archive of the sources at `root`; return both."""
    # An archive of the sources has no history: then hatchling's own date is as good as any.
    date = os.environ.get("SOURCE_DATE_EPOCH") or git(root, "log", "-1", "--format=%ct")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder.absolute())],
        cwd=root,
        env={**os.environ, "SOURCE_DATE_EPOCH": date or "1580601600"},
        check=True,
        capture_output=True,
    )
    return folder / f"wasmkiln-{version}-py3-none-any.whl", folder / f"wasmkiln-{version}.tar.gz"


def requirements(version: str, lock: str, files: list[Path]) -> str:
    """Return the lock file of the daemon, less what only builds, with the release on top."""
    parts = {each["name"] for each in bill("0", lock)["components"]}
    needed = "".join(block[0] for block in LOCKED.finditer(lock) if block[1] in parts)
    hashes = " \\\n".join(f"    --hash=sha256:{_sha256(file)}" for file in files)
    return (
        f"# Installs wasmkiln {version} and the versions that it was tested with:\n"
        f"#   pip install --require-hashes -r wasmkiln-{version}-requirements.txt\n"
        f"wasmkiln[server]=={version} \\\n{hashes}\n{needed}"
    )


def chart() -> bytes:
    """Return the Helm chart as `helm package` packs it, without the values of the tests."""
    files = (path for path in CHART.rglob("*") if path.is_file() and path.parent.name != "ci")
    return packed("wasmkiln", {str(path.relative_to(CHART)): path.read_bytes() for path in files})


def contract(version: str) -> dict[str, bytes]:
    """Return the archive of the contract and its descriptor set, by their names."""
    files = {str(path.relative_to(PROTOS)): path for path in sorted(PROTOS.rglob("*.proto"))}
    words = ["-m", "grpc_tools.protoc", "-I.", "--include_imports", "--include_source_info"]
    command = [sys.executable, *words, "-o/dev/stdout", *files]
    image = subprocess.run(command, cwd=PROTOS, stdout=subprocess.PIPE, check=True).stdout
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents |= {"wasmkiln.binpb": image, "LICENSE": (ROOT / "LICENSE").read_bytes()}
    name = f"wasmkiln-protos-{version}"
    return {f"{name}.tar.gz": packed(name, contents), "wasmkiln.binpb": image}


def clients(version: str, sources: Path) -> dict[str, bytes]:
    """Return an archive of each other language's client, by its name: all have the contract."""
    with tarfile.open(sources) as tar:
        entries = {each.name.partition("/")[2]: tar.extractfile(each) for each in tar}
        held = {name: file.read() for name, file in entries.items() if file}
    shared = {name: held[name] for name in held if name == "LICENSE" or name.endswith(".proto")}
    found = {}
    for language, (archive, folder) in CLIENTS.items():
        own, start = dict(shared), f"client/{language}/"
        own |= {name.removeprefix(start): held[name] for name in held if name.startswith(start)}
        found[archive.format(version)] = packed(folder.format(version), own)
    return found


def packed(folder: str, files: dict[str, bytes]) -> bytes:
    """Return a tar.gz whose bytes follow from names and contents alone; all lie in `folder`."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, content in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{path}")
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(written.getvalue(), mtime=0)


def git(root: Path, *words: str) -> str:
    """Return what git prints; nothing if it fails."""
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


if __name__ == "__main__":
    print(*build(ROOT / "dist"), sep="\n")
