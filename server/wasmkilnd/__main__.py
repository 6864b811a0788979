"""``python -m wasmkilnd``."""

from wasmkilnd.cli import main

main()
