"""The modes of files and folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from wasmkilnd.cache.host_store import HostOptions


@pytest.mark.parametrize(
    ("files", "folders"), [(0o600, 0o700), (0o640, 0o750), (0o644, 0o755), (0o440, 0o750)]
)
def test_who_may_read_files_may_search_folders(files: int, folders: int) -> None:
    assert HostOptions(Path("/x"), 1, files).folder_mode == folders


@pytest.mark.parametrize("mode", [0o660, 0o602, 0o666, 0o1640, 0o750, 0o040, 0])
def test_no_other_user_may_write(mode: int) -> None:
    with pytest.raises(ValueError, match="cannot use mode"):
        HostOptions(Path("/x"), 1, mode)
