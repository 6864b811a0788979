"""What is stored under a key of the shared tier: names, bytes, and the checks before use.

| file | what |
|---|---|
| ``names`` | the names of all keys below ``redis_prefix``, and their patterns |
| ``format`` | a value's bytes: magic, version, digest, stamp, header, first piece |
| ``header`` | the JSON header: written, and read strictly |
| ``pieces`` | a payload in compressed pieces, each with a digest |
| ``verify`` | all checks that need a key: stamp, attestation, whole payload |
| ``marks`` | what an Evict or a release leaves, so that nothing removed comes back |
| ``rejected`` | the causes for which a value is not used |

This room does no I/O: ``cache.redis`` moves the bytes.

**Trust.** Any client of the server may write under these names. So a value is used only if a
trusted key signed its header (the stamp), the header is about the key that was asked for, an
artifact's attestation verifies, and each piece has the digest that the header names. Nothing is
parsed or decompressed before the check that covers it. A value that fails raises ValueRejected
with a ``Cause``, which is the label of the metric ``values_rejected``; the reader deletes it.

**Keys.** ``compiled:{<module>}:<fingerprint>``, ``module:{<module>}``, ``part:…`` for further
pieces, ``lease:…`` and ``strike:…`` (``cache.fleet``), ``mark:{<module>}`` and ``mark:all``. The
braces keep all keys of a module in one slot of a cluster. Those of a namespace begin with
``ns:<namespace>:``.

**When to bump a version.** ``fingerprint.CACHE_FORMAT`` is the version in each value, and part of
every fingerprint and of the names of modules. Raise it when the bytes of a value change: daemons
of both versions then share a server and never read each other's values. A mark has no version:
add fields only, since readers ignore those that they do not know. ``tests/formats`` holds
samples of every released format.
"""
