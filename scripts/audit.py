"""Ask for known vulnerabilities of what the lock files name, and fail if there is one.

``python scripts/audit.py`` runs pip-audit of the same environment. Where the data cannot be had,
as without a network or behind an index that has none, it prints "skipped" and succeeds.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What is served is a part of what is developed with, at the same versions.
AUDITED = "requirements/dev.txt"
# Words of pip-audit, and of the errors that it does not catch.
NO_NETWORK = re.compile(r"Could not connect|ConnectionError|ServiceError|Timeout|Max retries")
TIMEOUT_S = 300


def main() -> int:
    """Run pip-audit; print what it found; return the exit code."""
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip_audit", "--progress-spinner", "off"),
                *("--disable-pip", "--require-hashes", "--format", "json"),
                *("--requirement", str(ROOT / AUDITED)),
            ],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        print("audit: skipped")
        return 0
    words, code = verdict(done.stdout, done.stderr)
    print(words)
    return code


def verdict(output: str, errors: str) -> tuple[str, int]:
    """Return what to print about a run of pip-audit, and the exit code."""
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if NO_NETWORK.search(errors):
            return "audit: skipped", 0
        last = (errors.strip().splitlines() or ["it printed nothing"])[-1]
        return f"audit: pip-audit failed: {last}", 1
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if len(unknown) == len(packages):
        return "audit: skipped", 0
    found = [
        f"audit: {each['name']} {each['version']} has {hole['id']};"
        f" mended in: {', '.join(hole['fix_versions']) or 'no version'}"
        for each in packages
        for hole in each.get("vulns", ())
    ]
    lines = [*found, *(f"audit: there is no data for {name}" for name in unknown)]
    if not found:
        lines.append(f"audit: {len(packages) - len(unknown)} packages, no known vulnerability")
    return "\n".join(lines), 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
