"""Which connections are floods, and which only look like one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from wasmkilnd.rpc.connections.core_counts import Counts
from wasmkilnd.rpc.connections.floods import CANCELLED_PER_S, FloodWatch
from wasmkilnd.rpc.connections.sockets import Address, parse

MESSAGE = 16 * 1024 * 1024
BURST = 2_000


def peer(port: int) -> Address:
    found = parse(f"ipv4:192.0.2.1:{port}")
    assert found
    return found


A, B, C = peer(1), peer(2), peer(3)


class Connections:
    """What the kernel and gRPC say of connections, as a test tells it."""

    def __init__(self) -> None:
        self.watch = FloodWatch(lambda: BURST, MESSAGE)
        self.received: dict[Address, int] = {}
        self.counts: dict[Address, Counts] = {}
        self.asked: list[Address] = []
        self.now = 1_000.0

    def send(self, sender: Address, size: int, **counts: int) -> None:
        before = self.counts.get(sender, Counts())
        values = {name: getattr(before, name) for name in ("begun", "cancelled", "answered")}
        values["messages"] = before.messages
        self.received[sender] = self.received.get(sender, 0) + size
        self.counts[sender] = Counts(**{k: v + counts.get(k, 0) for k, v in values.items()})

    def cancel(self, sender: Address, count: int) -> None:
        self.send(sender, 100 * count, begun=count, cancelled=count)

    def look(
        self, seconds: float = 0.1, *, at_calls: bool = True
    ) -> tuple[list[Address], list[Address]]:
        self.now += seconds
        self.asked.clear()
        return self.watch.look(self.received, self._counts, self.now, at_calls=at_calls)

    def _counts(self, of: Address) -> Counts | None:
        self.asked.append(of)
        return self.counts.get(of)


def known(*those: Address, **counts: int) -> Connections:
    """Return connections that were looked at before."""
    connections = Connections()
    for one in those:
        connections.send(one, 1_000, **counts)
    connections.look()
    for one in those:
        connections.send(one, 1_000)
    connections.look()
    return connections


def test_who_takes_back_more_than_is_bearable_goes_and_nobody_else() -> None:
    connections = known(A, B)
    connections.cancel(A, BURST + 1_000)
    connections.cancel(B, 50)
    assert connections.look() == ([A], [])


def test_as_many_calls_as_may_be_under_way_may_be_taken_back_at_once() -> None:
    connections = known(A, B, C)
    for one in (A, B, C):
        connections.cancel(one, BURST // 3)
    assert connections.look() == ([], [])


def test_what_was_taken_back_before_the_first_look_does_not_count() -> None:
    connections = known(A, begun=1_000_000, cancelled=900_000)
    connections.cancel(A, 100)
    assert connections.look() == ([], [])


def test_whoever_came_since_the_last_look_has_all_that_it_did_from_then() -> None:
    connections = known(A)
    connections.cancel(B, BURST + 1_000)
    assert connections.look() == ([B], [])


def test_hours_of_honest_deadlines_are_no_flood() -> None:
    connections = known(A)
    for _ in range(10_000):
        connections.cancel(A, CANCELLED_PER_S // 10)
        assert connections.look() == ([], [])


def test_many_connections_that_each_take_back_a_little_go_until_the_rest_is_bearable() -> None:
    flood = [peer(port) for port in range(10, 110)]
    connections = known(A, *flood)
    connections.cancel(A, 3)
    for one in flood:
        connections.cancel(one, 40)
    going, _ = connections.look()
    assert set(going) <= set(flood)
    assert len(going) > 80


def test_who_comes_back_after_a_flood_has_less_time() -> None:
    connections = known(A)
    connections.cancel(A, BURST + 1_000)
    assert connections.look() == ([A], [])
    del connections.received[A]
    connections.cancel(B, BURST // 4)
    assert connections.watch.alert(connections.now)
    assert connections.look() == ([B], [])
    del connections.received[B]
    connections.look(60)
    connections.cancel(C, BURST // 4)
    assert connections.look() == ([], [])


def frames_from(connections: Connections, sender: Address) -> Callable[[int], bool]:
    def sends(size: int) -> bool:
        connections.send(sender, size)
        return connections.look(at_calls=False) == ([], [sender])

    return sends


def test_who_sends_frames_that_carry_nothing_goes() -> None:
    connections = known(A, B)
    connections.send(B, MESSAGE, messages=1)
    sends = frames_from(connections, A)
    assert not sends(MESSAGE // 2)
    assert not sends(MESSAGE // 2)
    assert sends(MESSAGE // 2)


def test_calls_whose_messages_are_on_their_way_may_send_them() -> None:
    connections = known(A, begun=3)
    sends = frames_from(connections, A)
    for _ in range(4):
        assert not sends(MESSAGE - 1)
    connections.send(A, 0, messages=1)
    for _ in range(3):
        assert not sends(MESSAGE)


def test_counts_are_read_only_of_connections_that_may_be_floods() -> None:
    connections = known(A, B)
    connections.look()
    assert not connections.asked
    connections.send(A, 100_000)
    connections.look(at_calls=False)
    assert not connections.asked
    connections.send(A, 100)
    connections.look()
    assert connections.asked == [A]


def test_what_is_not_there_any_more_is_forgotten() -> None:
    connections = known(A)
    gone: Mapping[Address, int] = {}
    assert connections.watch.look(gone, lambda _: None, 2_000.0, at_calls=True) == ([], [])
    connections.cancel(A, BURST + 1_000)
    assert connections.look() == ([A], [])
