"""A disk that can hang: a FUSE file system that passes everything on to a folder.

``python -m tests.servers.slow_disk FOLDER PIDFILE`` mounts it over FOLDER, and serves until that is
unmounted. While the process is stopped (SIGSTOP), whatever asks the disk for anything waits.
Nothing is cached: no bytes, names or attributes.

It needs /dev/fuse and the right to mount, which root has, and anybody in namespaces of his own. It
knows as much of FUSE as daemons use: makes no links or devices, and has no extended attributes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e.programs import ROOT

_NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
_MAX_BYTES = 1 << 20
_HEADER = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<6Q10I")
_DIE_WITH_PARENT = 1


def why_not() -> str:
    """Return why there can be no such disk here; empty if there can be one."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "cannot use /dev/fuse"
    tried = subprocess.run([*_NAMESPACE, "true"], check=False, capture_output=True, text=True)
    return tried.stderr.strip()


def command_with_disk(folder: Path, pid_file: Path, command: Sequence[str]) -> tuple[str, ...]:
    """Return a command that runs another one, which finds the disk at ``folder``, as nobody else.

    The disk ends with it. ``pid_file`` gets the id of its process.
    """
    disk = [sys.executable, "-m", __name__, str(folder), str(pid_file)]
    words = " ".join(f"'{word}'" for word in disk)
    ready = f"until [ -s '{pid_file}' ]; do sleep 0.05; done"
    script = f"(cd '{ROOT}' && exec {words}) & {ready}; exec \"$@\""
    return (*_NAMESPACE, "sh", "-c", script, "sh", *command)


class _Disk:
    """Serves one folder to the kernel, which asks by the numbers of nodes and of open files."""

    def __init__(self, folder: Path, device: int) -> None:
        self._device = device
        self._nodes = {1: os.open(folder, os.O_PATH)}
        self._known = dict[tuple[int, int], int]()
        self._listed = dict[int, list[bytes]]()
        self._answers: dict[int, Callable[[int, bytes], bytes | None]] = {
            1: self._look_up,
            2: lambda *_: None,  # Forget: there are few.
            3: lambda node, _: self._attributes(self._nodes[node]),
            4: self._change,
            5: lambda node, _: os.readlink(b"", dir_fd=self._nodes[node]),
            9: self._make_folder,
            10: lambda node, body: self._remove(node, body, is_folder=False),
            11: lambda node, body: self._remove(node, body, is_folder=True),
            12: lambda node, body: self._rename(node, body, 8),
            14: self._open,
            15: self._read,
            16: self._write,
            17: self._describe,
            18: self._close,
            20: lambda *_: b"",  # Sync.
            26: self._begin,
            27: self._open_folder,
            28: self._list,
            29: self._close,
            34: lambda *_: b"",  # Access.
            35: self._create,
            36: lambda *_: None,  # Interrupt.
            42: lambda *_: None,
            45: lambda node, body: self._rename(node, body, 16),
        }

    def serve(self) -> None:
        """Answer until the disk is unmounted."""
        while True:
            try:
                message = os.read(self._device, _MAX_BYTES + 4096)
            except OSError as failure:
                if failure.errno == errno.ENODEV:
                    return
                continue
            _, code, number, node, *_ = _HEADER.unpack_from(message)
            failed, said = 0, b""
            try:
                answer = self._answers.get(code)
                found = answer(node, message[_HEADER.size :]) if answer else b""
                if found is None:
                    continue
                failed, said = (0, found) if answer else (errno.ENOSYS, b"")
            except OSError as failure:
                failed = failure.errno or errno.EIO
            try:
                os.write(self._device, _OUT.pack(_OUT.size + len(said), -failed, number) + said)
            except OSError:
                continue  # Whoever asked has gone.

    def _begin(self, _: int, body: bytes) -> bytes:
        flags = 1 << 5 | 1 << 22  # Large writes, in many pages.
        sizes = struct.pack("<4I2H2I2H8I", 7, 31, 0, flags, 64, 48, _MAX_BYTES, 1, 256, *[0] * 9)
        return sizes[:64]

    def _entry(self, descriptor: int) -> bytes:
        found = os.stat(descriptor)
        known = found.st_dev, found.st_ino
        if known in self._known:
            os.close(descriptor)
        else:
            self._known[known] = len(self._nodes) + 1
            self._nodes[self._known[known]] = descriptor
        node = self._known[known]
        return struct.pack("<4Q2I", node, 0, 0, 0, 0, 0) + self._attributes(self._nodes[node])[16:]

    def _look_up(self, node: int, body: bytes) -> bytes:
        flags = os.O_PATH | os.O_NOFOLLOW
        return self._entry(os.open(_name(body), flags, dir_fd=self._nodes[node]))

    def _attributes(self, descriptor: int) -> bytes:
        it = os.stat(descriptor)
        times = it.st_atime_ns, it.st_mtime_ns, it.st_ctime_ns
        whole, rest = zip(*(divmod(each, 10**9) for each in times), strict=True)
        return struct.pack("<QII", 0, 0, 0) + _ATTRIBUTES.pack(
            *(it.st_ino, it.st_size, it.st_blocks, *whole, *rest, it.st_mode, it.st_nlink),
            *(it.st_uid, it.st_gid, it.st_rdev, it.st_blksize, 0),
        )

    def _change(self, node: int, body: bytes) -> bytes:
        valid, _, _, size, _, *rest = struct.unpack("<2I6Q8I", body[:88])
        times, nanoseconds = rest[:3], rest[3:6]
        mode, _, uid, gid, _ = rest[6:]
        path = Path(f"/proc/self/fd/{self._nodes[node]}")
        if valid & 6:
            os.chown(path, uid if valid & 2 else -1, gid if valid & 4 else -1)
        if valid & 1:
            path.chmod(stat.S_IMODE(mode))
        if valid & 8:
            os.truncate(path, size)
        if valid & 48:
            before = path.stat()
            used = [before.st_atime_ns, before.st_mtime_ns]
            for place, bit in enumerate((16, 32)):
                if valid & bit:
                    used[place] = times[place] * 10**9 + nanoseconds[place]
            os.utime(path, ns=(used[0], used[1]))
        return self._attributes(self._nodes[node])

    def _make_folder(self, node: int, body: bytes) -> bytes:
        mode, _ = struct.unpack_from("<2I", body)
        os.mkdir(_name(body[8:]), mode, dir_fd=self._nodes[node])
        return self._look_up(node, body[8:])

    def _remove(self, node: int, body: bytes, *, is_folder: bool) -> bytes:
        remove = os.rmdir if is_folder else os.unlink
        remove(_name(body), dir_fd=self._nodes[node])
        return b""

    def _rename(self, node: int, body: bytes, begins: int) -> bytes:
        [target] = struct.unpack_from("<Q", body)
        before, after, _ = body[begins:].split(b"\0", 2)
        os.rename(before, after, src_dir_fd=self._nodes[node], dst_dir_fd=self._nodes[target])
        return b""

    def _open(self, node: int, body: bytes) -> bytes:
        [flags] = struct.unpack_from("<I", body)
        flags &= ~(os.O_NOFOLLOW | os.O_DIRECT)
        return _opened(os.open(f"/proc/self/fd/{self._nodes[node]}", flags))

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<2I", body)
        name = _name(body[16:])
        descriptor = os.open(name, flags | os.O_CREAT, mode, dir_fd=self._nodes[node])
        return self._look_up(node, body[16:]) + _opened(descriptor)

    def _read(self, _: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(descriptor, size, offset)

    def _write(self, _: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(descriptor, body[40 : 40 + size], offset), 0)

    def _close(self, _: int, body: bytes) -> bytes:
        [descriptor] = struct.unpack_from("<Q", body)
        self._listed.pop(descriptor, None)
        os.close(descriptor)
        return b""

    def _describe(self, node: int, body: bytes) -> bytes:
        it = os.statvfs(f"/proc/self/fd/{self._nodes[1]}")
        counts = it.f_blocks, it.f_bfree, it.f_bavail, it.f_files, it.f_ffree
        return struct.pack("<5Q10I", *counts, it.f_bsize, it.f_namemax, it.f_frsize, *[0] * 7)

    def _open_folder(self, node: int, body: bytes) -> bytes:
        descriptor = os.open(f"/proc/self/fd/{self._nodes[node]}", os.O_RDONLY | os.O_DIRECTORY)
        self._listed[descriptor] = sorted(map(os.fsencode, os.listdir(descriptor)))  # noqa: PTH208 - of no path
        return _opened(descriptor)

    def _list(self, _: int, body: bytes) -> bytes:
        descriptor, offset, size = struct.unpack_from("<QQI", body)
        said = b""
        for number, name in enumerate(self._listed[descriptor][offset:], offset + 1):
            # Its kind is unknown, and asked for.
            one = struct.pack("<QQII", 1, number, len(name), 0) + name
            one += bytes(-len(one) % 8)
            if len(said) + len(one) > size:
                break
            said += one
        return said


def _name(body: bytes) -> bytes:
    return body.partition(b"\0")[0]


def _opened(descriptor: int) -> bytes:
    return struct.pack("<QII", descriptor, 1, 0)  # Read and write past the cache.


def main(folder: str, pid_file: str) -> None:
    """Mount the disk and serve."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_DIE_WITH_PARENT, 9)
    device = os.open("/dev/fuse", os.O_RDWR)
    disk = _Disk(Path(folder), device)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    if libc.mount(b"disk", os.fsencode(folder), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "cannot mount")
    Path(pid_file).write_text(f"{os.getpid()}\n")
    disk.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
