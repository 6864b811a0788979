"""What the tests for operators need of the system, and the Debian packages that have it."""

from __future__ import annotations

import sys

from tests.toolchains import Toolchains

TOOLS = Toolchains(
    {
        "chromium": {
            "chromium": "chromium",
            "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf": "fonts-dejavu-core",
        },
        "podman": {"podman": "podman", "runc": "runc", "debootstrap": "debootstrap"},
        "systemd": {"systemctl": "systemd", "/usr/lib/systemd/systemd": "systemd"},
        "prometheus": {"prometheus": "prometheus", "promtool": "prometheus"},
    },
    "OPERATORS",
)

if __name__ == "__main__":
    if problem := TOOLS.install():
        sys.exit(f"make test-operators: {problem}")
