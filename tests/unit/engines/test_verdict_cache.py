"""Verdicts are kept in a bounded room, and the sum is exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.engines.verdicts.verdict import Outcome, Verdict
from wasmkilnd.engines.verdicts.verdict_cache import VerdictCache

VALID = Verdict(Outcome.VALID)


def test_the_least_recently_asked_goes_first() -> None:
    memory = VerdictCache(max_entries=2)
    memory.put(("a", "e", ""), VALID)
    memory.put(("b", "e", ""), VALID)
    memory.get(("a", "e", ""))
    memory.put(("c", "e", ""), VALID)
    assert [key[0] for key in memory] == ["a", "c"]


def test_long_messages_count() -> None:
    memory = VerdictCache(max_bytes=3000)
    memory.put(("a", "e", ""), Verdict(Outcome.INVALID, "ü" * 800))
    memory.put(("b", "e", ""), VALID)
    memory.put(("c", "e", ""), VALID)
    assert [key[0] for key in memory] == ["b", "c"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(["put", "forget", "get"]), st.text())
    )
)
def test_the_sum_of_bytes_is_that_of_what_is_there(steps: list[tuple[str, str, str]]) -> None:
    memory = VerdictCache(max_entries=4, max_bytes=4000)
    alone = VerdictCache()
    for name, step, message in steps:
        key = (name, "e", "")
        if step == "put":
            memory.put(key, Verdict(Outcome.INVALID, message))
        elif step == "forget":
            memory.forget(key)
        else:
            memory.get(key)
    for key in list(memory):
        found = memory.get(key)
        assert found
        alone.put(key, found)
    assert memory.bytes == alone.bytes <= 4000
    assert len(memory) <= 4
