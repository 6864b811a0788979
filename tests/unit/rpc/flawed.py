"""``python flawed.py …``: a wasmkilnd with a defect, which every call of FindMissing meets."""

from wasmkilnd.cli import main
from wasmkilnd.compile import Compiler


async def _find_missing(*_: object) -> list[int]:
    raise KeyError("a defect that was planted")


Compiler.find_missing = _find_missing  # type: ignore[method-assign, assignment]

main()
