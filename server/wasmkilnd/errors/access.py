"""Callers without the right to call. What they learn is what they lack, and nothing else."""

from __future__ import annotations

from wasmkilnd.errors.core import Reason, WasmkilnError


def credentials_missing(*, certificates: bool = True) -> WasmkilnError:
    """The call says nothing about who makes it.

    ``certificates``: whether the daemon knows callers by certificates too.
    """
    return WasmkilnError(
        Reason.CREDENTIALS_MISSING,
        "cannot tell who calls: send a token as the metadata `authorization: Bearer TOKEN`"
        + (", or a client certificate to an address that asks for one" if certificates else ""),
    )


def credentials_invalid(cause: str, message: str) -> WasmkilnError:
    """The call has credentials that do not count.

    ``cause`` is ``malformed``, ``unknown``, ``expired`` or ``untrusted``. Name ``expired`` only
    for credentials that were genuine: others must not learn that.
    """
    return WasmkilnError(Reason.CREDENTIALS_INVALID, message, cause=cause)


def role_missing(role: str, what: str) -> WasmkilnError:
    """The caller lacks a role. ``what`` says what it wanted, after "cannot"."""
    return WasmkilnError(
        Reason.ROLE_MISSING,
        f"cannot {what}: it needs the role {role}, which your identity does not have; ask the"
        " operator of the daemon",
        role=role,
    )


def not_in_the_table(what: str) -> WasmkilnError:
    """The caller wants what the table of access has no row for: no role permits it."""
    return WasmkilnError(
        Reason.ROLE_MISSING,
        f"cannot {what}: the daemon has nothing there that anybody may have",
        role="none",
    )


def only_hits(what: str) -> WasmkilnError:
    """The caller may only get what a cache holds. ``what`` says what it wanted, after "cannot"."""
    return role_missing("compile", what)


def default_namespace_only(role: str, what: str) -> WasmkilnError:
    """The caller has a role in its namespace, and wants something that is about all of them."""
    return WasmkilnError(
        Reason.ROLE_MISSING,
        f"cannot {what}: it is about the whole daemon, and needs the role {role} in the default"
        " namespace; ask the operator of the daemon",
        role=role,
    )


def quota_exceeded(quota: str, what: str, retry_after_s: float) -> WasmkilnError:
    """The caller has used up a quota. ``quota`` names it, ``what`` says how."""
    return WasmkilnError(
        Reason.QUOTA_EXCEEDED,
        f"{what}: try again in {retry_after_s:.1f} s",
        retry_after_s=retry_after_s,
        quota=quota,
    )


def namespace_closed() -> WasmkilnError:
    """The policy changed while the call arrived, and names the namespace of its caller no more."""
    return credentials_invalid(
        "unknown", "cannot serve this call: its caller's namespace was just removed; call again"
    )
