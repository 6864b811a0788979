"""``python flawed.py …``: a wasmkilnd with a defect, which every call of FindMissing meets."""

from wasmkilnd.cli import main
from wasmkilnd.compile_service import CompileService


async def _find_missing(*_: object) -> list[int]:
    raise KeyError("a defect that was planted")


CompileService.find_missing = _find_missing  # type: ignore[method-assign, assignment]

main()
