"""How long fuzzing lasts: a moment in the tests, much longer by `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# That of all tests is in tests/conftest.py. This one is chosen by `--hypothesis-profile fuzz`.
settings.register_profile(
    "fuzz",
    max_examples=20_000,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
