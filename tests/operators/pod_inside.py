"""Runs a container of a pod: in namespaces of its own, with its volumes, its user and no more.

Reads the container as JSON from standard input (`pod.py` writes it); has to run as root, in new
mount, network and process namespaces. The root is this machine's, read-only, with the volumes
mounted where the container has them, as the image would have them.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITIES = range(41)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


def main(container: dict[str, Any]) -> None:
    """Become the container's process."""
    scratch = Path(container["scratch"])
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "scratch", str(scratch))
    for name in ("upper", "work", "root"):
        (scratch / name).mkdir()
    layers = f"lowerdir=/,upperdir={scratch}/upper,workdir={scratch}/work"
    root = scratch / "root"
    mount("-t", "overlay", "overlay", "-o", layers, str(root))
    for each in container["mounts"]:
        inside = root / each["path"].lstrip("/")
        inside.mkdir(parents=True, exist_ok=True)
        mount("--bind", each["source"], str(inside))
        if each["read_only"]:
            mount("-o", "remount,bind,ro", str(inside))
    for folder in container["readable"]:  # where the programs are: an image has them for everybody
        inside = (root / folder.lstrip("/")).parent
        inside.mkdir(parents=True, exist_ok=True)
        if not any(inside.iterdir()):  # A volume hides them, as that of /tmp does.
            mount("--bind", str(Path(folder).parent), str(inside))
        for parent in (root / folder.lstrip("/")).parents:
            if root in parent.parents:
                parent.chmod(parent.stat().st_mode | 0o055)
    mount("--rbind", "/dev", str(root / "dev"))
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-o", "remount,bind,ro", str(root))
    loopback_up()
    os.chroot(root)
    os.chdir("/")
    libc = ctypes.CDLL(None)
    for capability in CAPABILITIES:
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups(container["groups"])
    os.setgid(container["group"])
    os.setuid(container["user"])
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.umask(0o022)
    os.execvpe(container["command"][0], container["command"], container["environ"])


def loopback_up() -> None:
    """Switch the network namespace's loopback on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def mount(*words: str) -> None:
    """Mount something. Raise CalledProcessError."""
    subprocess.run(["mount", *words], check=True)


if __name__ == "__main__":
    main(json.load(sys.stdin))
