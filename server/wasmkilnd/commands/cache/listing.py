"""``wasmkilnd cache ls`` and ``du``: list and add up what is stored, by heads alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import click
from wasmkiln.cli.text import size

from wasmkilnd.commands.cache.choice import Choice, choice_options
from wasmkilnd.commands.cache.session import (
    HELP,
    HostSession,
    Place,
    Session,
    run,
    run_on_host,
    tier_option,
    where_options,
)
from wasmkilnd.commands.cache.text import bar, duration, say, say_json, short, table
from wasmkilnd.maintenance.host_store import host_values
from wasmkilnd.maintenance.inventory import Inventory, Listed, Trust
from wasmkilnd.maintenance.orphans import Mentions, OrphanFinder, OtherKeys

_ORDERS: Mapping[str, Callable[[Listed], Any]] = {
    # A module comes before its artifacts.
    "module": lambda value: (value.key.module_sha256, value.engine, value.key.fingerprint),
    "size": lambda value: -value.stored_bytes,
    "age": lambda value: value.finished_on or "~",
    "expiry": lambda value: value.ttl_s if value.ttl_s >= 0 else float("inf"),
}


@click.command(context_settings=HELP)
@choice_options
@click.option(
    "--sort",
    "order",
    type=click.Choice(list(_ORDERS)),
    default="module",
    show_default=True,
    help="Sort by module, largest first, oldest first, or first to expire first.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@tier_option
@where_options()
def ls(
    choice: Choice,
    order: str,
    as_json: bool,
    on_host: bool,
    place: Place,
) -> None:
    """List all values: sizes, ages, engines, and the keys that signed them."""

    async def look(session: Session) -> list[Listed]:
        inventory = Inventory(session.link, session.names, session.verifier)
        with bar("reading heads", None) as advance:
            found = []
            async for listed in inventory.values():
                advance(1)
                if choice.takes(listed):
                    found.append(listed)
        return found

    def look_on_host(session: HostSession) -> list[Listed]:
        return list(filter(choice.takes, _on_host(session)))

    found = run_on_host(place, look_on_host) if on_host else run(place, look)
    listed = sorted(found, key=_ORDERS[order])
    if as_json:
        for value in listed:
            say_json(_document(value))
        return
    columns = (
        *("module", "what", "kind", "target", "cpu", "settings", ">raw", ">stored"),
        *(">compiled", ">expires in", "signed by"),
    )
    now = time.time()
    for line in table(columns, [_row(value, now) for value in listed]):
        click.echo(line)


@click.command(context_settings=HELP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@tier_option
@where_options()
def du(as_json: bool, on_host: bool, place: Place) -> None:
    """Add up the sizes of values by engine and kind, and of the other keys."""

    async def look(session: Session) -> tuple[dict[tuple[str, str], _Sum], OtherKeys]:
        inventory = Inventory(session.link, session.names, session.verifier)
        mentions = Mentions(session.names)
        sums: dict[tuple[str, str], _Sum] = {}
        with bar("reading heads", None) as advance:
            async for value in inventory.values(mentions):
                advance(1)
                sums.setdefault(_group(value), _Sum()).add(value)
            rest = await OrphanFinder(session.link, session.names, mentions).count()
        return sums, rest

    def look_on_host(session: HostSession) -> dict[tuple[str, str], _Sum]:
        sums: dict[tuple[str, str], _Sum] = {}
        for value in _on_host(session):
            sums.setdefault(_group(value), _Sum()).add(value)
        return sums

    rest: OtherKeys | None = None
    if on_host:
        sums = run_on_host(place, look_on_host)
    else:
        sums, rest = run(place, look)
    total = _Sum()
    for each in sums.values():
        total.merge(each)
    if as_json:
        values = [
            {"what": what, "kind": kind, **asdict(each)}
            for (what, kind), each in sorted(sums.items())
        ]
        say_json({"values": values, "total": asdict(total), **(asdict(rest) if rest else {})})
        return
    rows = [(what, kind, *each.cells()) for (what, kind), each in sorted(sums.items())]
    for line in table(
        ("what", "kind", ">values", ">raw", ">stored"), [*rows, ("total", "", *total.cells())]
    ):
        click.echo(line)
    if rest is None:
        return
    say("")
    say(f"{rest.parts} further pieces of values: {size(rest.part_bytes)}")
    say(f"{rest.orphans} of them are orphans, which no value mentions: {size(rest.orphan_bytes)}")
    say(f"{rest.leases} leases, {rest.strikes} strikes, {rest.marks} marks")
    say(f"{rest.other_format} keys in another version's format, {rest.unknown} unknown keys")


def _on_host(session: HostSession) -> Iterator[Listed]:
    with bar("reading heads", None) as advance:
        for value in host_values(session.options, session.verifier):
            advance(1)
            yield value


@dataclass(slots=True)
class _Sum:
    values: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0

    def add(self, value: Listed) -> None:
        self.merge(_Sum(1, value.raw_bytes, value.stored_bytes))

    def merge(self, other: _Sum) -> None:
        self.values += other.values
        self.raw_bytes += other.raw_bytes
        self.stored_bytes += other.stored_bytes

    def cells(self) -> tuple[str, str, str]:
        return str(self.values), size(self.raw_bytes), size(self.stored_bytes)


def _what(value: Listed) -> str:
    if value.key.artifact is None:
        return "module"
    return value.engine or "artifact"


def _group(value: Listed) -> tuple[str, str]:
    if value.rejected:
        return "unreadable", value.rejected.cause.value
    return _what(value), value.kind.value if value.kind else ""


def _row(value: Listed, now: float) -> tuple[str, ...]:
    expires_in = duration(value.ttl_s) if value.ttl_s >= 0 else "never"
    beginning = (short(value.key.module_sha256), _what(value))
    if value.rejected:
        why = f"unreadable: {value.rejected}"
        return (*beginning, *("-",) * 5, size(value.stored_bytes), "-", expires_in, why)
    settings = ",".join(f"{name}={setting}" for name, setting in value.changed_settings)
    trust = "" if value.trust is Trust.TRUSTED else f", {value.trust.value}"
    return (
        *beginning,
        value.kind.value if value.kind else "-",
        *(value.target or "-", value.cpu or "-", settings or "-"),
        *(
            size(value.raw_bytes),
            size(value.stored_bytes),
            _age(value.finished_on, now),
            expires_in,
        ),
        f"{short(value.signer)}{trust}",
    )


def _age(finished_on: str, now: float) -> str:
    try:
        then = datetime.strptime(finished_on, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return "-"
    return f"{duration(now - then.timestamp())} ago"


def _document(value: Listed) -> dict[str, Any]:
    rejected = value.rejected
    return {
        "what": "artifact" if value.key.artifact else "module",
        "module": value.key.module_sha256,
        "fingerprint": value.key.fingerprint or None,
        "kind": value.kind.value if value.kind else None,
        "engine": value.engine or None,
        "target": value.target or None,
        "cpu": value.cpu or None,
        "changed_settings": dict(value.changed_settings),
        "raw_bytes": value.raw_bytes,
        "stored_bytes": value.stored_bytes,
        "expires_in_s": value.ttl_s if value.ttl_s >= 0 else None,
        "finished_on": value.finished_on or None,
        "signed_by": value.signer or None,
        "trust": value.trust.value or None,
        "unreadable": {"cause": rejected.cause.value, "why": rejected.why} if rejected else None,
    }
