"""Settings for all tests."""

from __future__ import annotations

from hypothesis import settings

# No test says anything about speed, so no example of one has a deadline.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")
