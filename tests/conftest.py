"""Settings for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# No test says anything about speed, so no example of one has a deadline.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# A shell has its background jobs ignore SIGINT, and commands that tests interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
