"""What pydantic finds wrong with settings, files and messages, in sentences for people.

None of them quotes a value, which may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_STEPS = 4  # Beyond these, it is the type that was tried.


def in_words(detail: ErrorDetails) -> str:
    """Return what is wrong with a value."""
    if detail["type"] == "value_error":
        return str(detail.get("ctx", {})["error"])
    if detail["type"] == "extra_forbidden":
        return "the daemon knows no such key"
    return re.sub("^(Input|String|Tuple) should", "it should", detail["msg"])


def by_place(
    error: ValidationError, steps: int = _STEPS, why: Callable[[ErrorDetails], str] = in_words
) -> dict[str, str]:
    """Return what is wrong by its place, for example "rule 2 roles 1".

    Of a value that may have several types, the first mistake is enough.
    """
    found = dict[str, str]()
    for detail in error.errors(include_input=False, include_url=False):
        place = [each + 1 if isinstance(each, int) else each for each in detail["loc"][:steps]]
        found.setdefault(" ".join(str(each) for each in place if each != "[key]"), why(detail))
    return found


def sentences(error: ValidationError, why: Callable[[ErrorDetails], str] = in_words) -> list[str]:
    """Return what is wrong, a sentence for each place."""
    found = by_place(error, why=why)
    return [f"{place}: {what}" if place else what for place, what in found.items()]
