"""Names that the command imports from here: see client.py."""

from wasmkiln.client import MAX_TIMEOUT_S as MAX_TIMEOUT_S
from wasmkiln.client import parse_size as parse_size
