"""Keeps gRPC's own log out of the command's standard error, whose lines are for its user.

gRPC writes a line there for each failed handshake, unless the environment says otherwise when it
is imported. So this has to be imported first, and a program that is not the command is left alone.
"""

from __future__ import annotations

import os
import sys

if os.path.basename((getattr(sys, "argv", None) or [""])[0]) == "wasmkiln":  # noqa: PTH119
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
