"""The settings of the host store: what is allowed, and what the machine decides."""

from __future__ import annotations

import grp
import os
from pathlib import Path

import pytest
from wasmkilnd.machine import file_system_bytes
from wasmkilnd.options import host_options
from wasmkilnd.settings import Settings
from wasmkilnd.settings_loader import ConfigError, load, render

GIB = 2**30


def settings(**flags: str) -> Settings:
    return load({"state_dir": "/somewhere", **flags}, {"HOME": "/root"}).settings


def test_the_defaults_follow_the_state_directory_and_its_file_system(tmp_path: Path) -> None:
    one = settings(state_dir=str(tmp_path / "state"))
    assert one.effective_host_store_dir == tmp_path / "state" / "host_store"
    tenth = file_system_bytes(tmp_path) // 10
    assert one.effective_host_store_bytes == min(4 * GIB, tenth)
    options = host_options(one)
    assert (options.file_mode, options.folder_mode, options.group) == (0o640, 0o750, None)
    loaded = load({"state_dir": str(tmp_path)}, {"HOME": "/root"})
    assert 'host_store_bytes = "auto"  # default; ' in render(loaded)


def test_a_size_or_auto() -> None:
    assert settings(host_store_bytes="2GiB").effective_host_store_bytes == 2 * GIB
    assert settings(host_store_bytes="0").effective_host_store_bytes == 0
    assert settings(host_store_bytes=" Auto ").host_store_bytes == "auto"
    for wrong in ("-1", "some", "99999999GiB"):
        with pytest.raises(ConfigError, match="host_store_bytes"):
            settings(host_store_bytes=wrong)


def test_the_directory_may_be_none_or_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    off = settings(host_store_dir=" none ", host_store_bytes="1GiB")
    assert (off.host_store_dir, off.effective_host_store_bytes) == ("none", 0)
    assert not host_options(off).limit_bytes
    monkeypatch.chdir(tmp_path)
    assert settings(host_store_dir="some").effective_host_store_dir == tmp_path / "some"
    assert settings(host_store_dir="./none").effective_host_store_dir == tmp_path / "none"
    with pytest.raises(ConfigError, match="host_store_dir"):
        settings(host_store_dir="\0")


def test_a_group_is_a_name_or_a_number() -> None:
    ours = grp.getgrgid(os.getegid())
    assert host_options(settings(host_store_group=ours.gr_name)).group == ours.gr_gid
    assert host_options(settings(host_store_group="12345")).group == 12345
    with pytest.raises(ConfigError, match="is not a group of this machine"):
        settings(host_store_group="no-such-group")
