"""``python -m wasmkilnd``."""

from wasmkilnd.entry import main

main()
