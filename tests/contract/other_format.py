"""``python other_format.py FORMAT …``: a wasmkilnd of a version with another cache format."""

import sys

from wasmkilnd import fingerprint

fingerprint.CACHE_FORMAT = int(sys.argv.pop(1))

from wasmkilnd.cli import main  # noqa: E402 - what it imports has to find the other format

main()
