"""Labels that cannot grow without end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from prometheus_client import Counter
from wasmkilnd.telemetry.metrics.series import Bounded


def counters(*labels: str, room: int = 0) -> Bounded[Counter]:
    return Bounded(Counter("n", "Help.", labels, registry=None).labels, room)


def value(counter: Counter) -> float:
    (metric,) = counter.collect()
    return metric.samples[0].value


def values(family: Bounded[Counter]) -> dict[tuple[str, ...], float]:
    return {labels: value(counter) for labels, counter in family.all()}


def test_an_added_series_stands_at_zero() -> None:
    family = counters("a")
    family.add("x")
    assert values(family) == {("x",): 0}
    family.at("x").inc(3)
    assert value(family.add("x")) == 3


def test_an_unexpected_series_counts_as_other() -> None:
    family = counters("a", "b")
    family.add("x", "y")
    for index in range(100):
        family.at("x", f"{index}").inc()
    assert values(family) == {("x", "y"): 0, ("other", "other"): 100}


def test_known_labels_are_kept() -> None:
    family = counters("a", "b")
    family.add("x", "other")
    family.at("x", "new").inc()
    family.at("new", "new").inc()
    assert values(family) == {("x", "other"): 1, ("other", "other"): 1}
    assert family.known("x", "new") == ("x", "other")
    assert family.known("new", "new") == ("other", "other")


def test_room_is_for_a_number_of_unexpected_series() -> None:
    family = counters("a", room=2)
    for name in ("x", "y", "x", "z", "w"):
        family.at(name).inc()
    assert values(family) == {("x",): 2, ("y",): 1, ("other",): 2}


def test_threads_lose_nothing() -> None:
    family = counters("a", room=4)

    def count() -> None:
        for index in range(4000):
            family.at(f"{index % 6}").inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(values(family).values()) == 16000
    assert len(values(family)) == 5


def test_a_folder_for_several_processes_gets_no_files(tmp_path: Path) -> None:
    """An operator may have set it for the other services of the machine."""
    program = "from wasmkilnd.telemetry.metrics.recorder import Metrics; Metrics('1')"
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
