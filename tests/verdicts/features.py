"""What engines say of a proposal that is not enabled: the words of those that tests use.

The daemon reads the same messages, and has a table of its own.
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


def missing_feature(message: str) -> str:
    """Return the proposal that the module needs, by the engine's message; "" if it names none."""
    if len(message) > 300:
        return ""  # It quotes something.
    own = _PLACE.sub("", message.strip())
    for form in _FEATURE_FORMS:
        if found := form.fullmatch(own):
            name = re.sub(r"[ _]", "-", found["name"].lower())
            return _ALIASES.get(name, name)
    return ""
