"""Names that the command imports from here: see credentials.py."""

from wasmkiln.credentials import profiles_file as profiles_file
from wasmkiln.credentials import read_profiles as read_profiles
