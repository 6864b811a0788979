"""What a process has on its way in tmp/ is its own while it lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from wasmkilnd.cache.host.scratch import Scratch

_HOLD = """
import sys
from pathlib import Path
from wasmkilnd.cache.host.scratch import Scratch
scratch = Scratch(Path(sys.argv[1]))
scratch.fresh().mkdir()
print(scratch.name(), flush=True)
sys.stdin.read()
"""


def test_what_a_process_holds_stays_until_it_is_killed(tmp_path: Path) -> None:
    mine = Scratch(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        theirs = process.stdout.readline().strip()
        kept = mine.fresh()
        kept.mkdir()
        assert mine.clean() == 0
        assert mine.is_alive(theirs)
        process.kill()
        process.wait()
    assert not mine.is_alive(theirs)
    assert mine.clean() == 1
    assert not mine.is_alive(theirs)
    assert kept.is_dir()
    assert mine.is_alive(mine.name())
    mine.close()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_others_put_there_goes(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tmp" / "file").write_text("")
    (tmp_path / "tmp" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tmp" / "folder" / "deep").mkdir(parents=True)
    scratch = Scratch(tmp_path)
    assert scratch.clean() == 3
    assert list((tmp_path / "tmp").iterdir()) == []
    assert (tmp_path / "elsewhere").is_dir()


def test_a_folder_that_vanishes_is_made_again(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    first = scratch.fresh().parent
    first.rmdir()
    again = scratch.fresh().parent
    assert again.is_dir()
    assert again != first
    scratch.close()
    scratch.close()
