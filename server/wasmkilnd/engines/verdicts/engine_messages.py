"""Read an engine's own messages: a feature that is not enabled, or memory that ran out.

Engines share a validator, wasmparser, each in a version of its own. It knows more proposals than
an engine enables, and says so in a few forms. They were found by giving each engine a module for
each proposal, with the proposal switched off where that is possible, and in the texts that the
engines' libraries contain. A message may quote names that the module chose: no name must pass for
the engine's own words.
"""

from __future__ import annotations

import re

# The name of a proposal as an engine writes it, and what needs it. Neither holds a line break.
_NAME = r"(?P<name>[A-Za-z0-9][\w -]{0,40}?)"
_WHAT = r"[\w`'\[\]<>,. -]{1,100}?"

# Each form is the whole message, with no text of the module before or behind it. Names of the
# module stand between quotation marks in the middle of a message: for a module that exports
# "legacy_exceptions feature required" twice, it begins with "duplicate export name".
_FEATURE_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"{_NAME} support is not enabled",
        rf"support for {_NAME} `values?`s is not enabled",
        rf"{_NAME} feature required for [a-z_]+ instruction",
        rf"{_NAME} proposal (?:is )?not (?:enabled|supported)",
        rf"{_NAME} not enabled(?:: zero byte expected)?",
        rf"(?:the )?{_NAME}(?: proposal)? must be enabled(?: (?:to|for) {_WHAT})?",
        rf"{_WHAT} requires? the {_NAME} (?:proposal|feature)",
        rf"{_WHAT} requires? (?:the )?`{_NAME}` (?:proposal|feature)(?: to be enabled)?",
        rf"the `{_NAME}` feature is not active",
        rf"{_WHAT} not supported without the {_NAME} feature",
        rf"cannot define [a-z]+ types when {_NAME}(?: types are| is) disabled",
        rf"{_WHAT} (?:but the|when) {_NAME}(?: feature)? is not enabled",
        rf"(?P<name>function references|custom descriptors) required for {_WHAT}",
        r"(?P<name>gc) types are disallowed but found type which requires gc",
        rf"unknown type [\w<> ]{{1,30}}: type index out of bounds because the {_NAME}"
        r" proposal is disabled",
        rf"invalid leading byte 0x[0-9A-F]+ with {_NAME} proposal disabled",
        r"multiple (?P<name>memories|tables)",
    )
)
# What a validator adds to its message to say where it stopped.
_PLACE = re.compile(r"^Invalid input WebAssembly code at offset \d+: | \(at offset \w+\)$")
# Longer messages quote something.
_MAX_FEATURE_MESSAGE = 300

# Names that engines use beside the proposal's own, which GetCapabilities lists.
_ALIASES = {
    "cm-gc": "component-model-gc",
    "component-model": "component-model-values",
    "custom-descriptors-operations": "custom-descriptors",
    "exceptions": "exception-handling",
    "exception": "exception-handling",
    "legacy-exception-handling": "legacy-exceptions",
    "memories": "multi-memory",
    "mutable-global": "mutable-globals",
    "saturating-float-to-int-conversions": "saturating-float-to-int",
    "sign-extension-operations": "sign-extension",
    "tables": "reference-types",
    "tail-calls": "tail-call",
}


# What engines, their allocators and Python write when RLIMIT_AS stops them. Rust's allocator
# aborts with the first; a failed mmap arrives as one of the others.
_OUT_OF_MEMORY_SIGNS = (
    "memory allocation of",
    "cannot allocate memory",
    "os error 12",
    "outofmemory",
    "memoryerror",
    "out of memory",
    "failed to allocate",
    "failed to spawn thread",
    "threadpoolbuilderror",
)
# What Rust puts before an error's own words, with quotation marks in it.
_PANIC = re.compile(
    r"^(?:thread '[^']*'(?: \(\d+\))? panicked at '?)?"
    r"(?:called `Result::unwrap\(\)` on an `Err` value: )?"
)
_REFUSED_ALLOCATION = re.compile(r"memory allocation of (\d{1,19}) bytes")
# An apostrophe within a word quotes nothing.
_QUOTATION = re.compile(r"[`\"]|(?<!\w)'")

# Engines quote the module's names, which may be long, and end with where they stopped.
_MAX_MESSAGE = 400
_MAX_MESSAGE_END = 60


def missing_feature(message: str) -> str:
    """Return the proposal that the module needs, by the engine's message; "" if it names none."""
    if len(message) > _MAX_FEATURE_MESSAGE:
        return ""
    own = _PLACE.sub("", message.strip())
    for form in _FEATURE_FORMS:
        if found := form.fullmatch(own):
            name = re.sub(r"[ _]", "-", found["name"].lower())
            return _ALIASES.get(name, name)
    return ""


def tells_out_of_memory(line: str) -> bool:
    """Return whether one message, or one line of a panic, says that memory ran out.

    Ignore everything from the first quotation mark on: engines quote the module's names, and an
    export may be called ``onMemoryError``.
    """
    own = _QUOTATION.split(_PANIC.sub("", line), maxsplit=1)[0].lower()
    return any(sign in own for sign in _OUT_OF_MEMORY_SIGNS)


def refused_bytes(words: str) -> int:
    """Return the size of the allocation that was refused; 0 if the words do not tell.

    It can be most of what a job needed: a table that grows is refused when half of it is there.
    """
    refused = _REFUSED_ALLOCATION.search(words)
    return int(refused[1]) if refused else 0


def one_sentence(words: str) -> str:
    """Return ``words`` on one line, without control characters, cut in the middle if long."""
    line = " ".join(words.split())
    line = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
    if len(line) <= _MAX_MESSAGE:
        return line
    return f"{line[: _MAX_MESSAGE - _MAX_MESSAGE_END]} … {line[-_MAX_MESSAGE_END:]}"


def cause_line(words: str) -> str:
    """Return the line of a panic's message or a traceback that tells the cause."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("note:")]
    return one_sentence(lines[-1]) if lines else ""
