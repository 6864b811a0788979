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
