"""The audit: one line of JSON for each act that somebody may have to answer for.

==========  ====================================================================
``audit``   ``Audit``, the port ``Auditor``: writes each line, or counts it as lost
``lines``   what a line says as JSON
``file``    appends to the audit file; renames it when it is full
``floods``  how many failures of one kind and one identity get a line
==========  ====================================================================

A line is written with one ``write`` to a file that is open for appending, before the caller gets
the answer. So a daemon that is killed after it answered has lost nothing, and several processes
(daemons, ``wasmkilnd keys``) may write to the same file. A machine that loses power may lose the
last seconds: the daemon does not wait for the disk.

Each line has ``time``, ``event``, ``identity`` and ``code``; docs/reference/audit.md lists the
others. No line has a secret, or bytes of a module. Texts of callers are cut, and are ASCII once
they are JSON, so that no line exceeds 16 KiB.

What succeeds always gets its line. Failures cost a caller little and strangers can cause them, so
of one reason and one identity 100 in 10 s are written, 10 in each 10 s of a flood that lasts, and
then one line with ``left_out``, the number of the others.

A full disk does not stop the daemon: it logs "cannot write the audit" once, counts
``wasmkiln_audit_lost_total``, and begins the next line that it can write with how many are lost.
With ``audit_file=log``, lines go to the daemon's log instead, as the event ``audit``.
"""
