"""Turns between callers, callers before background work, and who yields when it is full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wasmkilnd.engines.scheduling.fair_queue import Entry, FairQueue
from wasmkilnd.waiters import Waiter

A, B, C = Waiter("a"), Waiter("b"), Waiter("c")
WARMING = Waiter("w", background=True)
OWN = Waiter(background=True, last=True)


def entry(*waiters: Waiter, size: int = 1, cost: float = 1.0, second: bool = False) -> Entry:
    return Entry(set(waiters), size, cost, second)


class Queue(FairQueue):
    """A queue whose bounds stay the same."""

    def __init__(self, length: int = 1000, limit_bytes: int = 10**9) -> None:
        super().__init__()
        self._bounds = length, limit_bytes

    def put(self, entry: Entry) -> list[Entry]:
        return self.add(entry, *self._bounds)


def queue_of(*entries: Entry, length: int = 1000, limit_bytes: int = 10**9) -> Queue:
    queue = Queue(length, limit_bytes)
    for one in entries:
        assert queue.put(one) == []
    return queue


def popped(queue: FairQueue) -> list[Entry]:
    return list(queue.drain())


def test_one_caller_is_served_in_its_own_order() -> None:
    entries = [entry(A) for _ in range(5)]
    assert popped(queue_of(*entries)) == entries


def test_a_flood_keeps_another_waiting_for_one_job_only() -> None:
    flood = [entry(A) for _ in range(200)]
    queue = queue_of(*flood)
    one = entry(B)
    queue.put(one)
    assert [queue.pop(), queue.pop()] == [flood[0], one]


def test_callers_take_turns() -> None:
    a, b, c = ([entry(waiter) for _ in range(3)] for waiter in (A, B, C))
    assert popped(queue_of(*a, *b, *c)) == [x for turns in zip(a, b, c, strict=True) for x in turns]


def test_second_opinions_are_passed_over_and_keep_their_place() -> None:
    a, b = [entry(A, second=True), entry(A), entry(A)], [entry(B, second=True)]
    queue = queue_of(*a, *b)
    assert queue.ahead_s({A}, a[2]) == 3.0
    assert queue.ahead_s({A}, a[2], second=False) == 2.0  # One of its own line, one of the other.
    assert queue.pop(second=False) is a[1]
    assert queue.pop() is b[0]  # It is that line's turn.
    assert queue.pop() is a[0]
    assert queue.pop(second=False) is a[2]
    assert queue.pop(second=False) is None


def test_a_caller_that_comes_back_does_not_jump_ahead() -> None:
    a, b = [entry(A) for _ in range(3)], [entry(B) for _ in range(3)]
    queue = queue_of(a[0], *b)
    assert queue.pop() is a[0]
    queue.put(a[1])
    queue.put(a[2])
    assert popped(queue) == [b[0], a[1], b[1], a[2], b[2]]


def test_background_work_waits_for_everybody() -> None:
    warming = [entry(WARMING) for _ in range(3)]
    calls = [entry(A), entry(B)]
    queue = queue_of(*warming, *calls)
    assert queue.background == 3
    assert popped(queue) == calls + warming


def test_the_daemons_own_work_waits_for_background_work_too() -> None:
    own, warming, called = entry(OWN), [entry(WARMING) for _ in range(3)], entry(A)
    queue = queue_of(own, *warming, called)
    assert queue.background == 4
    assert queue.ahead_s({OWN}, own) == 4.0
    assert queue.ahead_s({WARMING}, warming[0]) == 1.0
    assert popped(queue) == [called, *warming, own]


def test_the_daemons_own_work_makes_room_first() -> None:
    own, warming = entry(OWN), [entry(WARMING), entry(WARMING)]
    queue = queue_of(own, warming[0], length=2)
    assert queue.put(warming[1]) == [own]
    queue = queue_of(*warming, length=2)
    assert queue.put(own) == [own]


def test_background_work_that_a_caller_begins_to_want_goes_in_its_turn() -> None:
    warming = [entry(WARMING) for _ in range(3)]
    queue = queue_of(*warming)
    queue.move(warming[2], {A})
    assert queue.pop() is warming[2]
    assert popped(queue) == warming[:2]


def test_work_of_a_flood_that_another_begins_to_want_goes_in_its_turn() -> None:
    flood = [entry(A) for _ in range(100)]
    queue = queue_of(*flood)
    queue.move(flood[99], {A, B})
    assert [queue.pop(), queue.pop(), queue.pop()] == [flood[0], flood[99], flood[1]]
    assert len(queue) == 97


def test_callers_that_left_count_no_more() -> None:
    flood = [entry(A) for _ in range(3)]
    queue = queue_of(*flood)
    queue.move(flood[2], {A, B})
    queue.move(flood[2], {A})
    assert popped(queue) == flood


def test_what_comes_back_is_next() -> None:
    queue = queue_of(entry(A), entry(B))
    lost = entry(C)
    queue.add_again(lost)
    assert len(queue) == 3
    assert queue.pop() is lost


def test_a_full_queue_refuses_a_caller_that_holds_most_of_it() -> None:
    queue = queue_of(*(entry(A) for _ in range(3)), length=3)
    one = entry(A)
    assert queue.put(one) == [one]
    assert len(queue) == 3


def test_a_full_queue_makes_room_for_a_caller_that_holds_less() -> None:
    flood = [entry(A) for _ in range(4)]
    queue = queue_of(*flood, length=4)
    assert queue.put(entry(B)) == [flood[3]]
    assert queue.put(entry(B)) == [flood[2]]
    # Now each has a half: nobody pushes anybody out any more.
    third = entry(B)
    assert queue.put(third) == [third]


def test_background_work_makes_room_first() -> None:
    warming = entry(WARMING)
    queue = queue_of(entry(A), entry(A), warming, length=3)
    assert queue.put(entry(A)) == [warming]
    more = entry(WARMING)
    assert queue.put(more) == [more]


def test_work_that_others_want_too_is_not_given_up_for_a_flood() -> None:
    flood = [entry(A) for _ in range(4)]
    queue = queue_of(*flood, length=4)
    queue.move(flood[3], {A, B})
    assert queue.put(entry(C)) == [flood[2]]


def test_bytes_are_bounded_too_and_whoever_holds_most_yields() -> None:
    big = [entry(A, size=40), entry(A, size=40)]
    queue = queue_of(*big, entry(B, size=10), length=100, limit_bytes=100)
    assert queue.put(entry(B, size=20)) == [big[1]]
    assert queue.size_bytes == 70
    alone = queue_of(limit_bytes=10)
    assert alone.put(entry(A, size=1000)) == []


def test_the_wait_ahead_is_counted_in_turns() -> None:
    queue = queue_of(*(entry(A, cost=2.0) for _ in range(100)))
    assert queue.ahead_s({A}) == 200.0
    assert queue.ahead_s({B}) == 2.0
    assert queue.ahead_s({WARMING}) == 200.0
    queue.put(entry(WARMING, cost=5.0))
    assert queue.ahead_s({B}) == 2.0
    assert queue.ahead_s({WARMING}) == 205.0


def test_the_wait_ahead_of_what_waits_already() -> None:
    entries = [entry(A, cost=1.0) for _ in range(5)]
    queue = queue_of(*entries)
    assert queue.ahead_s({A}, entries[3]) == 3.0
    assert queue.ahead_s({A, B}, entries[3]) == 1.0  # as B would have it


waiters = st.builds(Waiter, st.sampled_from("abcd"), st.booleans())
steps: st.SearchStrategy[tuple[str, set[Waiter], int]] = st.one_of(
    st.tuples(st.just("add"), st.sets(waiters, min_size=1, max_size=3), st.integers(0, 50)),
    st.tuples(st.just("move"), st.sets(waiters, min_size=1, max_size=3), st.integers(0, 50)),
    st.tuples(st.just("pop"), st.just(set()), st.just(0)),
    st.tuples(st.just("discard"), st.just(set()), st.integers(0, 50)),
)


@given(st.lists(steps, max_size=80))
def test_whatever_happens_it_counts_exactly_and_loses_nothing(
    script: list[tuple[str, set[Waiter], int]],
) -> None:
    queue = Queue(length=6, limit_bytes=100)
    waiting: list[Entry] = []
    for what, wanted, number in script:
        if what == "add":
            one = Entry(wanted, number, float(number))
            waiting.append(one)
            for gone in queue.put(one):
                waiting.remove(gone)
        elif what == "pop":
            taken = queue.pop()
            assert (taken is None) == (not waiting)
            if taken:
                waiting.remove(taken)
        elif waiting:
            one = waiting[number % len(waiting)]
            if what == "move":
                queue.move(one, wanted)
            else:
                queue.discard(one)
                waiting.remove(one)
        assert len(queue) == len(waiting) <= 6
        assert queue.size_bytes == sum(each.size_bytes for each in waiting)
        assert queue.size_bytes <= 100 or len(waiting) == 1
        assert queue.callers == len({w.caller for each in waiting for w in each.waiters})
    assert sorted(map(id, popped(queue))) == sorted(map(id, waiting))
    assert queue.ahead_s({A}) == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=60), st.sampled_from("abc"))
def test_nobody_waits_for_more_than_one_job_of_each_other_caller_per_turn(
    callers: list[str], late: str
) -> None:
    queue = queue_of(*(entry(Waiter(caller)) for caller in callers))
    mine = callers.count(late)
    one = entry(Waiter(late))
    queue.put(one)
    before = popped(queue).index(one)
    others = {caller for caller in callers if caller != late}
    assert before <= mine + (mine + 1) * len(others)
