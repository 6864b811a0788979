"""Files of this machine: who may change them, and what waits for their disks.

| file | what it is |
|---|---|
| ``ownership`` | who else could change a file or a folder; how to refuse it |
| ``operator_files`` | files that settings name, read within bounds |
| ``whole_files`` | small files that change whole, by one process at a time |
| ``spooled`` | a module in a file without a name, which ends with its last reader |
| ``threads`` | threads that wait for disks and stores |

**A disk that hangs** holds up whoever needs it, and nobody else. So nothing here runs on the event
loop: it runs in ``Threads``, which nobody joins at the end. Where a caller waits, the wait has a
limit.

The host store, and directories of the object store, are tiers: ``wasmkilnd.cache``.
"""
