"""Text from elsewhere, made fit for one line of a terminal or a log."""

from __future__ import annotations

_LIMIT = 2_000


def one_line(text: str, limit: int = _LIMIT) -> str:
    """Return one printable line of about `limit` characters at most.

    An engine's message holds line breaks, and names that a module's author chose, which must
    not steer a terminal; a daemon can send megabytes.
    """
    head = text[: 4 * limit]
    joined = " ".join(head.split())
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    if len(clean) <= limit and len(head) == len(text):
        return clean
    return f"{clean[:limit]}… (cut, of {len(text):,} characters)"


def quoted(text: str) -> str:
    """Return a name or value to be put into a sentence."""
    return one_line(text, 200)
