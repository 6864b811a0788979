"""Tokens for tests: made by the command, sent as callers send them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from tests.e2e.daemon import Daemon
from tests.e2e.processes import eventually
from tests.e2e.programs import wasmkilnd

Metadata = tuple[tuple[str, str], ...]


def token_command(state_dir: Path, *words: str) -> str:
    """Run ``wasmkilnd token``; return its standard output."""
    return wasmkilnd("token", *words, "--state-dir", str(state_dir)).strip()


def add_token(
    state_dir: Path, name: str, *roles: str, namespace: str = "", expires: str = ""
) -> str:
    """Make a token with these roles; return its text."""
    words = [word for role in roles for word in ("--role", role)]
    words += ["--namespace", namespace] if namespace else []
    words += ["--expires", expires] if expires else []
    return token_command(state_dir, "add", name, *words)


def bearer(token: str) -> Metadata:
    """Return the metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),)


def verdict(call: Any, request: Any, metadata: Metadata = (), timeout: float = 60) -> str:
    """Make a call; return "" if it succeeds, else its reason and the role that it lacks.

    The status code stands for an error without a reason.
    """
    try:
        answer = call(request, metadata=metadata, timeout=timeout)
        if hasattr(answer, "cancel"):
            for _ in answer:
                break
            answer.cancel()
    except grpc.RpcError as refused:
        return reason_of(refused)
    return ""


def reason_of(refused: Any) -> str:
    """Return the reason of an error, and the role that the caller lacks."""
    for key, value in refused.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return f"{info.reason} {info.metadata.get('role', '')}".strip()
    return str(refused.code().name)


def reload(daemon: Daemon) -> None:
    """Send SIGHUP, and wait until it is answered."""
    seen = daemon.log.count('"reloaded"')
    daemon.process.send_signal(signal.SIGHUP)
    eventually(lambda: daemon.log.count('"reloaded"') > seen, "no answer to SIGHUP")
