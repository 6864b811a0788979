"""A module on its way to the daemon in pieces: what has arrived once is not sent again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from wasmkiln.assembly import Phase, Progress
from wasmkiln.errors import UnexpectedAnswer
from wasmkiln.rpc import One
from wasmkiln.v1.module_service_pb2 import QueryUploadRequest, UploadRequest, UploadResponse

if TYPE_CHECKING:
    from wasmkiln._header_fields import Call
    from wasmkiln.assembly import ProgressCallback

Tell = Callable[[int | Exception], None]
Messages = Callable[[Tell], Iterator[bytes]]

# Every daemon takes a message of twice this size.
ONE_MESSAGE_BYTES = 8 * 1024 * 1024
# What a connection that is cut loses at most. A daemon takes up to 1 MiB.
_PIECE_BYTES = 256 * 1024


class Upload(One[UploadResponse]):
    """Sends one module, by as many calls as that takes, and takes the answer of the last one."""

    def __init__(self, call: Call, on_progress: ProgressCallback | None) -> None:
        super().__init__(UploadResponse)
        self.call, self._on_progress = call, on_progress or (lambda _: None)
        self._size_bytes = call.size_bytes or 0
        self.is_large = self._size_bytes > ONE_MESSAGE_BYTES
        self.held_bytes = self.moved_bytes = 0
        """What the daemon holds, and the most that it ever held."""

    def query(self, _tell: Tell) -> Iterator[bytes]:
        """Yield the message that asks how much the daemon holds."""
        yield QueryUploadRequest(sha256=self.call.module_sha256).SerializeToString()

    def go_on(self, held_bytes: int) -> None:
        """Send what follows next. Raise UnexpectedAnswer for more than there is."""
        if held_bytes > self._size_bytes:
            raise UnexpectedAnswer(
                f"the daemon holds {held_bytes:,} bytes of a module of {self._size_bytes:,}"
            )
        self.held_bytes = held_bytes
        self.moved_bytes = max(self.moved_bytes, held_bytes)

    def messages(self, tell: Tell) -> Iterator[bytes]:
        """Yield the messages of a call. Tell how far they are, and why no more can be read."""
        self._message = None  # of a call before: the daemon may have lost the module since
        sha256, engine = self.call.module_sha256, self.call.engine
        first = UploadRequest(sha256=sha256, size_bytes=self._size_bytes, engine=engine)
        try:
            yield first.SerializeToString()
            tell(self.held_bytes)
            for offset in range(self.held_bytes, self._size_bytes, _PIECE_BYTES):
                data = self.call.piece(offset, _PIECE_BYTES)
                yield UploadRequest(offset=offset, data=data).SerializeToString()
                tell(offset + len(data))
        except Exception as error:  # gRPC, whose thread runs this, would log and hide it
            tell(error)

    def told(self, news: int | Exception) -> None:
        """Report how far the messages are, or raise what ended them: in the caller's thread."""
        if isinstance(news, Exception):
            raise news
        self._on_progress(Progress(Phase.UPLOADING, news, self._size_bytes))
