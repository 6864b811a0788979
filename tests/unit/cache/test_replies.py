"""A server's answers are followed to the byte, however they are cut, and no more is let in."""

from __future__ import annotations

from collections.abc import Sequence

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import InvalidResponse
from wasmkilnd.cache.redis.replies import Argument, Replies

VALUE: Sequence[Argument] = ("GETRANGE", b"key", 0, 999)
SCAN: Sequence[Argument] = ("SCAN", 0, "MATCH", b"*", "COUNT", 1000)
SET: Sequence[Argument] = ("SET", b"key", b"value", "EX", 60)

GOOD: list[tuple[Sequence[Argument], bytes]] = [
    (VALUE, b"$1000\r\n" + b"x" * 1000 + b"\r\n"),
    (VALUE, b"$0\r\n\r\n"),
    (VALUE, b"$4\r\n\r\n$9\r\n"),
    (VALUE, b"-WRONGTYPE Operation against a key\r\n"),
    (SET, b"+OK\r\n"),
    (SET, b"$-1\r\n"),
    (("TTL", b"key"), b":-2\r\n"),
    (SCAN, b"*2\r\n$1\r\n0\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"),
    (SCAN, b"*2\r\n$2\r\n17\r\n*0\r\n"),
    (("CLUSTER", "SLOTS"), b"*1\r\n*3\r\n:0\r\n:9\r\n*4\r\n$1\r\nh\r\n:1\r\n$1\r\ni\r\n*0\r\n"),
    (("CLIENT SETINFO", "LIB-NAME", "x"), b"+OK\r\n"),
]
BAD = {
    "more than was asked for": b"$1001000\r\n",
    "an array": b"*1\r\n:1\r\n",
    "a second answer": b":1\r\n:1\r\n",
    "a line without end": b"+" + b"x" * 5000,
    "no length": b"$x\r\n",
    "a length as Python has it": b"$1_0\r\n",
    "a map": b"%1\r\n",
    "a push": b">1\r\n",
    "nothing": b"\r\n",
}


@given(st.lists(st.sampled_from(GOOD), min_size=1, max_size=8), st.data())
def test_good_answers_pass_however_they_are_cut(
    exchange: list[tuple[Sequence[Argument], bytes]], data: st.DataObject
) -> None:
    replies, reader = Replies(), hiredis.Reader()
    replies.expect([command for command, _ in exchange])
    left = b"".join(answer for _, answer in exchange)
    read = 0
    while left:
        size_bytes = data.draw(st.integers(1, len(left)))
        replies.look(left[:size_bytes])
        reader.feed(left[:size_bytes])
        while reader.gets() is not False:
            read += 1
        # It sees the end of an answer where the client does.
        assert replies._commands == len(exchange) - read
        left = left[size_bytes:]
    assert read == len(exchange)


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
@pytest.mark.parametrize("at_once", [True, False])
def test_bad_answers_do_not(answer: bytes, at_once: bool) -> None:
    replies = Replies()
    replies.expect([VALUE])

    def arrive() -> None:
        for part in [answer] if at_once else [answer[at : at + 1] for at in range(len(answer))]:
            replies.look(part)

    with pytest.raises(InvalidResponse):
        arrive()


def test_what_was_not_used_is_not_for_the_next() -> None:
    replies = Replies()
    for _ in range(100):
        replies.expect([VALUE])
        replies.look(b"$0\r\n\r\n")
    replies.expect([SET])
    with pytest.raises(InvalidResponse):
        replies.look(b"$10000\r\n")


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused(arrived: bytes) -> None:
    replies = Replies()
    replies.expect([VALUE, SCAN, SET])
    try:
        replies.look(arrived)
    except InvalidResponse:
        return
