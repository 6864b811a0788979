"""What joins the daemon and one job: a socket to converse, and a pipe for its last words."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import FileIO

# More than a pipe holds.
_WHOLE_PIPE_BYTES = 2 * 1024 * 1024
_LAST_WORDS_BYTES = 4096


class OutOfDescriptors(Exception):  # noqa: N818 - a state of the daemon, and no fault of the job's
    """The daemon has none left for a job; nothing of it has begun."""


@dataclass(frozen=True, slots=True)
class JobPipes:
    """The daemon's ends and the job's, each closed once it is of no use."""

    sock: socket.socket
    jobs_sock: socket.socket
    words: FileIO
    jobs_words: FileIO

    def close_jobs(self) -> None:
        """Close the job's, which has its own by now."""
        self.jobs_sock.close()
        self.jobs_words.close()

    def last_words(self) -> str:
        """Return the end of what the job wrote. It may still write: one look is all."""
        words: bytes = self.words.read(_WHOLE_PIPE_BYTES) or b""
        return words[-_LAST_WORDS_BYTES:].decode(errors="replace").strip()


@contextmanager
def job_ends() -> Iterator[JobPipes]:
    """Make the ends for a job, and close all in the end. Raises OutOfDescriptors."""
    with ExitStack() as opened:
        try:
            sock, jobs_sock = map(opened.enter_context, socket.socketpair())
            readable, writable = os.pipe()
        except OSError as failure:
            raise OutOfDescriptors(str(failure)) from None
        words = opened.enter_context(FileIO(readable, "r"))
        jobs_words = opened.enter_context(FileIO(writable, "w"))
        for end in (readable, writable):
            os.set_blocking(end, False)  # A flood of words is cut off, and stops nobody.
        sock.setblocking(False)
        yield JobPipes(sock, jobs_sock, words, jobs_words)
