"""The log: one line for each event, on standard error.

Everything that the daemon, its libraries, or native code writes becomes such a line, and passes
these steps:

==================  ==============================================================
``pipeline``        an event becomes a line: JSON, or text on a terminal. Also takes in
                    the standard library's log records
``masking``         secrets become ``***``; long values and tracebacks are cut
``repeats``         of each kind of line 20 in 10 s are written (of ``call`` 100 in
                    1 s), then the last one with ``left_out``, the number of the others
``journal``         a line for systemd's journal begins with its priority
``standard_error``  descriptor 2 becomes a pipe to the relay, since native libraries
                    write past Python
``relay``           the process at the other end, which masks and limits their lines
``writer``          a thread writes the lines, and drops and counts what nobody reads in time
==================  ==============================================================

Promises: logging never raises and never fails a call. No line is longer than 64 KiB, no secret
gets into one, and callers cannot fill the disk. At level ``debug`` lines are cut and masked
but not limited in number.

A part of the daemon logs with ``structlog.get_logger().info("event", field=value)``: the event is
a few fixed words, the fields are values. Events and fields are listed in docs/reference/logs.md;
operators search for them, so a field's name stays. Settings: ``log_format``, ``log_level``.
"""
