"""Which connections are closed when an address has hardly any left."""

from __future__ import annotations

from collections.abc import Mapping

from wasmkilnd.rpc.connections.call import CallsUnderWay, Use, UseSince
from wasmkilnd.rpc.connections.reserve import ConnectionReserve
from wasmkilnd.rpc.connections.sockets import Address, hosts_of, parse

NOW = 1_000.0


def peer(host: str, port: int) -> Address:
    found = parse(f"ipv4:{host}:{port}")
    assert found
    return found


def peers(host: str, count: int) -> list[Address]:
    return [peer(host, port) for port in range(1, count + 1)]


def to_close(
    found: Mapping[Address, int], used: Mapping[Address, UseSince], short_since_s: float = NOW
) -> set[Address]:
    reserve = ConnectionReserve(16, CallsUnderWay(4), lambda *_: None)
    reserve._short_since_s = short_since_s
    return reserve.to_close(found, used, hosts_of(found, frozenset({50051})), NOW)


def connected(*those: Address, port: int = 50051) -> dict[Address, int]:
    return dict.fromkeys(those, port)


def used(those: list[Address], use: Use, since_s: float = 90.0) -> dict[Address, UseSince]:
    """Return that those are used alike, the first for longest."""
    return {one: UseSince(use, since_s + at / 1e3) for at, one in enumerate(those)}


def test_nobody_goes_while_there_is_room() -> None:
    those = peers("127.0.0.1", 14)
    assert not to_close(connected(*those), used(those, Use.IDLE))


def test_the_longest_idle_go_until_a_quarter_is_free() -> None:
    those = peers("127.0.0.1", 15)
    assert to_close(connected(*those), used(those, Use.IDLE)) == set(those[:3])


def test_who_came_or_had_a_call_just_now_is_not_idle() -> None:
    those = peers("127.0.0.1", 16)
    recent = used(those, Use.IDLE, since_s=NOW - 0.5)
    assert not to_close(connected(*those), recent)


def test_others_stay_for_a_moment_while_enough_may_turn_out_to_be_idle() -> None:
    those = peers("127.0.0.1", 16)
    uses = {**used(those[:14], Use.WAITING), **used(those[14:], Use.IDLE, NOW - 0.5)}
    assert not to_close(connected(*those), uses)
    assert to_close(connected(*those), uses, short_since_s=NOW - 5) == set(those[:2])


def test_if_none_is_idle_those_that_wait_longest_go_until_an_eighth_is_free() -> None:
    those = peers("127.0.0.1", 16)
    assert to_close(connected(*those), used(those, Use.WAITING)) == set(those[:2])


def test_idle_ones_go_before_those_that_wait_and_these_before_those_that_work() -> None:
    those = peers("192.0.2.1", 16)
    uses = {
        **used(those[:12], Use.WORKING, 10.0),
        **used(those[12:15], Use.WAITING, 20.0),
        **used(those[15:], Use.IDLE, 30.0),
    }
    assert to_close(connected(*those), uses) == {those[15], those[12]}
    assert to_close(connected(*those), used(those, Use.WORKING)) == set(those[:2])


def test_the_host_with_most_connections_gives_them_first() -> None:
    flood, others = peers("192.0.2.1", 12), peers("192.0.2.2", 4)
    found = connected(*flood, *others)
    for use in Use:
        uses = {**used(flood, use, 500.0), **used(others, use, 1.0)}
        assert to_close(found, uses) < set(flood)


def test_a_host_that_works_on_most_gives_them_before_others_give_their_watches() -> None:
    flood, others = peers("192.0.2.1", 12), peers("192.0.2.2", 4)
    uses = {**used(flood, Use.WORKING), **used(others, Use.WAITING, 1.0)}
    assert to_close(connected(*flood, *others), uses) == set(flood[:2])


def test_a_host_within_its_share_keeps_what_is_idle_while_another_watches() -> None:
    flood, others = peers("192.0.2.1", 12), peers("192.0.2.2", 4)
    uses = {**used(flood, Use.WAITING), **used(others, Use.IDLE, 1.0)}
    assert to_close(connected(*flood, *others), uses, short_since_s=NOW - 5) == set(flood[:2])


def test_where_each_host_has_one_connection_some_go_all_the_same() -> None:
    those = [peer(f"192.0.2.{number}", 1) for number in range(16)]
    assert len(to_close(connected(*those), used(those, Use.IDLE))) == 4


def test_one_ipv6_network_is_one_host() -> None:
    flood = [address for at in range(12) if (address := parse(f"ipv6:%5B2001:db8::{at}%5D:1"))]
    others = peers("192.0.2.2", 4)
    uses = {**used(flood, Use.WAITING, 500.0), **used(others, Use.WAITING, 1.0)}
    assert to_close(connected(*flood, *others), uses) < set(flood)


def test_each_address_counts_by_itself() -> None:
    full, roomy = peers("192.0.2.1", 16), peers("192.0.2.2", 12)
    found = {**connected(*full, port=1), **connected(*roomy, port=2)}
    assert to_close(found, used([*full, *roomy], Use.IDLE)) < set(full)
