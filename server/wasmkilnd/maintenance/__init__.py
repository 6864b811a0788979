"""Offline work on the shared tier and the host store, for ``wasmkilnd cache``.

| file | what |
|---|---|
| ``connect`` | open the server that a daemon of the same settings uses, without a tier above it |
| ``inventory`` | what values there are, by their heads alone |
| ``orphans`` | the other keys under the prefix: pieces without a value, leases, strikes, marks |
| ``host_store`` | list and verify the entries of the host store |
| ``scrub`` | verify every value completely, delete the bad ones and the orphans |
| ``archive`` | the file format of an export: a plain tar file, read and written as a stream |
| ``transfer`` | values into an archive, and from an archive into another tier |

Everything works on values as they are stored: nothing is signed or packed again, and a value
keeps the signature of the daemon that made it. Values are read and written by ``cache.redis``,
with the same bounds as in a daemon; no key outside the shapes in ``cache.value.names`` is
touched.

**Beside running daemons.** All of it may run while daemons read and write. So a value is deleted
only if it fails twice in a row and is still the one that failed, and a piece only if no value
has mentioned it for some minutes. If no value at all verifies, the keys at hand are most likely
the wrong ones, and values of untrusted keys are kept.

**Any size.** Redis may hold millions of values: keys come from SCAN, heads in batches, payloads
a few pieces at a time, and an archive is never held in memory. Memory grows by a few hundred
bytes for each value.

**Format.** ``archive.VERSION`` is in each archive's first member. Raise it when a reader of the
old version would misread the new one; a reader refuses any other version.
"""
