"""The host store as a client sees it: artifacts of the daemon that this process maps.

A daemon keeps artifacts as files (`wasmkiln.host_layout` says where), and a process on the same
host loads them with no call and no copy. docs/how-to/host-store.md has the recipe for other
languages.

    place      find the store's directory: argument, environment, or where daemons put it
    engines    read engines.json; compute fingerprints as the daemon does
    files      open folders and files relative to descriptors; who may own them
    entry      open one entry: its header, compared with the call, and its artifact's descriptor
    checks     the policy: whether digest and signature of a mapped file are checked
    store      all of it: the entry for a call, or the file that a daemon's answer names

What it promises:

- Nothing is opened through a link, and nothing by its path a second time: what was checked is
  the descriptor that the engine maps.
- A file counts only if root, this user or the daemon's user owns it, nobody else can write to
  it, it is a regular file, and it has one name (see `files`).
- Anything that is not as it should be raises Refused, which callers turn into a miss: they ask
  the daemon. No other exception leaves this room but VerificationNotInstalled.
- It writes nothing. The daemon sees by the file's time of access that an entry is in use.

Settings: WASMKILN_HOST_STORE_DIR, and the client's arguments host_store_dir and check_files.
"""

from __future__ import annotations

from wasmkiln.host_store.checks import CheckFiles, FileChecks
from wasmkiln.host_store.entry import Entry
from wasmkiln.host_store.refused import Refused
from wasmkiln.host_store.store import HostStore

__all__ = ["CheckFiles", "Entry", "FileChecks", "HostStore", "Refused"]
