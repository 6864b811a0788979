"""What was checked is remembered, in bounded memory."""

from __future__ import annotations

from wasmkilnd.cache.host.entry import EntryId
from wasmkilnd.cache.host.verified import Verified

from tests.contract.values import artifact

ID: EntryId = ((1, 2, 3, 4), None, None, None)


def test_the_least_recently_used_are_forgotten() -> None:
    many = [artifact(tag) for tag in range(50)]
    verified = Verified(20_000)
    verified.add(many[0], ID, 0)
    for one in many[1:]:
        verified.add(one, ID, 0)
        assert verified.get(many[0].key)
    remembered = [one for one in many if verified.get(one.key)]
    assert 3 < len(remembered) < 10
    assert remembered == [many[0], *many[-len(remembered) + 1 :]]


def test_one_that_is_larger_than_the_memory_is_not_remembered() -> None:
    verified = Verified(1000)
    verified.add(artifact(1), ID, 0)
    assert verified.get(artifact(1).key) is None


def test_a_check_that_began_before_everything_was_forgotten_does_not_count() -> None:
    verified = Verified(20_000)
    epoch = verified.epoch
    verified.forget_all()
    verified.add(artifact(1), ID, epoch)
    assert verified.get(artifact(1).key) is None
    verified.add(artifact(1), ID, verified.epoch)
    assert verified.get(artifact(1).key)
    verified.forget(artifact(1).key)
    assert verified.get(artifact(1).key) is None
