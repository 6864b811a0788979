"""A short run of what `make large` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.fetch import CorpusUnavailable, fetch
from tests.corpus.modules import BY_NAME, LARGE_MODULES
from tests.large.run import run
from tests.promises import broken

# Of Go's compiler, and one that needs a proposal which no engine has any more.
MODULES = [BY_NAME["pii-shield"], *(one for one in LARGE_MODULES if one.name == "pyodide")]


@pytest.mark.timeout(900)
def test_large_modules_reach_other_daemons_through_what_they_share(tmp_path: Path) -> None:
    try:
        for module in MODULES:
            fetch(module)
    except CorpusUnavailable as unavailable:
        pytest.skip(str(unavailable))
    result = run(tmp_path, MODULES, print)
    print(f"\n{result.markdown()}")
    assert broken(result.checks()) == []
    assert [one.said for one in result.outcomes] == ["OK", "ENGINE_LACKS_FEATURE"]
