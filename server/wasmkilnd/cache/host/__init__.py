"""The host store: artifacts as files that any process of this host maps, a tier of its own.

Clients find an entry by fingerprint and module digest alone (``wasmkiln.host_layout``), with the
daemon up or down. An entry is a folder with the artifact, its header and attestation as
``Artifact.save`` of the client writes them, and ``head``: the head of a value in Redis
(``cache.value``), by which a daemon checks the entry after a restart, then a stamp of that head
with the header. So daemons of several versions accept each other's entries.

| file | what |
|---|---|
| ``tier`` | ``HostTier`` runs the rest in threads |
| ``store`` | read, write and check entries; ``entry``: one entry's files; ``verified``: done once |
| ``disk`` | entries come, go and make room, on the disk and in the index together |
| ``index``, ``rows`` | SQLite: bytes and last use of each entry |
| ``sweep``, ``housekeeping`` | Evict, a lost index, noting uses: what goes through many entries |
| ``pins`` | which entries make no room for others, and how much that is |
| ``folders``, ``scratch`` | folders that are checked; ``tmp/``, where entries are written |
| ``engines_file``, ``options``, ``reports`` | ``engines.json``; settings; log and metric |

**Promises.** An entry appears whole, by a rename, and its files never change; Evict unlinks, so
whoever has a file mapped keeps it. Only the daemon's user may own and write what is used here.
Each entry is checked once per process and file, as a value of Redis is. What is wrong is removed,
counted (``values_rejected{tier="host_store"}``), logged, and a miss. A disk that is full, read-only
or gone fails the tier (TierUnavailable), never a call. A process may be killed at any moment.

**Limit.** ``limit_bytes`` bounds the files, each rounded up to 4 KiB. The least recently used
entries go first: uses are noted behind the calls, every five minutes, as the mtime of the entry's
folder. What clients map by themselves shows in the file's atime, and is spared once.

**Formats.** The index is a cache of the folders: raise ``rows.SCHEMA_ID`` when it changes, and it
is rebuilt. Entries have the format of ``cache.value``, whose version is in the fingerprint.

Settings: ``host_store_dir``, ``host_store_bytes``, ``host_store_mode``, ``host_store_group``.
"""
