"""The inputs of fuzzing: a corpus of valid and formerly harmful inputs, and changes of these.

`tests/fuzz/corpus/TARGET/` has one input a file. Each is tried as it is, and hypothesis changes
them further. An input that broke something is put there, so that it is tried for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
"""All values of JSON, and what Python's reader also accepts."""


def corpus(target: str) -> list[bytes]:
    """Return the kept inputs of one target, in the order of their names."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of ``seeds`` with some of its bytes replaced, removed, repeated or added."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 16))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at : at + length]
            case 2:
                del data[at:]
            case 3:
                data[at:at] = data[at : at + length]
            case _:
                data[at:at] = draw(st.binary(max_size=16))
    return bytes(data)


def kept(*inputs: bytes, then: tuple[Any, ...] = ()) -> Callable[[Any], Any]:
    """Have a test try each of these inputs first, with the arguments that come ``then``."""

    def decorate(test: Any) -> Any:
        for each in inputs:
            test = example(each, *then)(test)
        return test

    return decorate


def anything(target: str) -> st.SearchStrategy[bytes]:
    """Changed inputs of the corpus, and random bytes."""
    return st.one_of(changed(corpus(target)), st.binary(max_size=256))
