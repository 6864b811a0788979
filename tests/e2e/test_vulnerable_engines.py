"""Engines with a known vulnerability: told of, or not served, at a start and at a reload."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wasmkiln import EngineRemoved, EngineUnknown

from tests.e2e import wasm
from tests.e2e.daemon import FAILED, Configured, state_with
from tests.e2e.hostile_engine import at_import, environment
from tests.e2e.processes import eventually, workers_of
from tests.e2e.programs import WASMKILN, Installed, run
from tests.e2e.test_daemon import get

GOOD, BAD = "wasmer-1.1.0", "wasmtime-50.0.1"
ROW = """[[advisory]]
id = "TEST-1"
summary = "A guest can leave"
engine = "wasmtime"
compilers = ["winch"]
affected = [">= 50.0.1, < 50.0.2"]
fixed_in = ["50.0.2", "51.0.0"]
url = "https://example.org/TEST-1"
"""
FIELDS = {
    "id": "TEST-1",
    "summary": "A guest can leave",
    "fixed_in": ["50.0.2", "51.0.0"],
    "url": "https://example.org/TEST-1",
}
SENTENCE = "TEST-1: A guest can leave; fixed in 50.0.2, 51.0.0; see https://example.org/TEST-1"


class Warned(Configured):
    """A daemon whose settings and advisories are in files."""

    def __init__(self, folder: Path, *engines: str, **settings: str) -> None:
        self.advisories = folder / "advisories.toml"
        self.advisories.write_text(ROW)
        named = {"advisories_file": str(self.advisories), "vulnerable_engines": "warn"}
        super().__init__(state_with(folder / "state", *engines), **{**named, **settings})

    def reload(self, answer: str = "engines read again") -> list[dict[str, Any]]:
        return super().reload(answer)

    def known(self) -> dict[str, list[str]]:
        """Return the ids of each served engine's advisories, as GetCapabilities has them."""
        with self.daemon.client() as client:
            engines = client.capabilities().engines
        return {each.engine.id: [row.id for row in each.advisories] for each in engines}

    def shown(self, *words: str) -> str:
        """Return what ``wasmkiln`` prints."""
        return run(WASMKILN, "--address", self.daemon.address, *words).stdout

    def page(self) -> dict[str, Any]:
        """Return what the status page is drawn from."""
        told: dict[str, Any] = json.loads(get(f"{self.daemon.admin_url}/status.json")[1])
        return told


def warnings(lines: list[dict[str, Any]]) -> dict[str, list[str]]:
    event = "engine has a known vulnerability"
    return {line["engine"]: line["advisories"] for line in lines if line["event"] == event}


def test_everybody_is_told(engines: Installed, tmp_path: Path) -> None:
    with Warned(tmp_path, GOOD, BAD) as one:
        logged = json.loads(one.daemon.wait_for_log('"engine has a known vulnerability"'))
        assert (logged["level"], logged["engine"], logged["advisories"]) == (
            "warning",
            BAD,
            ["TEST-1"],
        )
        assert one.known() == {GOOD: [], BAD: ["TEST-1"]}
        for engine, count in ((GOOD, 0), (BAD, 1)):
            assert one.daemon.metric("engine_advisories", engine=engine) == count
        with one.daemon.client() as client:  # It is served all the same.
            assert client.compile(wasm.adder(1), engine=BAD).header.size_bytes
        told = " ".join(one.shown("engines").split())
        assert f"{BAD} TEST-1 A guest can leave 50.0.2, 51.0.0 https://example.org/TEST-1" in told
        assert f"{GOOD} TEST-1" not in told
        document = json.loads(one.shown("engines", "--json"))
        rows = {each["engine"]["id"]: each.get("advisories", []) for each in document["engines"]}
        assert rows == {GOOD: [], BAD: [FIELDS]}
        page = {each["id"]: each["advisories"] for each in one.page()["engines"]}
        assert page == {GOOD: [], BAD: [SENTENCE]}

        one.advisories.write_text(ROW.replace("50.0.1", "49.0.0").replace("50.0.2", "49.9.9"))
        assert not warnings(one.reload())
        assert one.known() == {GOOD: [], BAD: []}
        assert "known vulnerability" not in one.page()
        one.advisories.write_text(ROW)
        assert warnings(one.reload()) == {BAD: ["TEST-1"]}
        assert one.known() == {GOOD: [], BAD: ["TEST-1"]}

        # A file that cannot be used refuses the reload.
        one.advisories.write_text(ROW.replace("winch", "wench"))
        one.write(vulnerable_engines="refuse")
        [refused] = [line for line in one.reload("cannot reload") if line["event"] == FAILED]
        sentence = f"cannot use advisories_file {one.advisories}: advisory 1 compilers 1: "
        assert refused["cause"].startswith(sentence)
        assert one.known() == {GOOD: [], BAD: ["TEST-1"]}


def test_a_release_of_the_built_in_table(engines: Installed, tmp_path: Path) -> None:
    with Warned(tmp_path, "wasmtime-49.0.0") as one:
        known = one.known()["wasmtime-49.0.0"]
        assert {"RUSTSEC-2026-0326", "RUSTSEC-2026-0327"} <= {*known}
        assert "RUSTSEC-2026-0095" not in known
        logged = json.loads(one.daemon.wait_for_log('"engine has a known vulnerability"'))
        assert logged["advisories"] == known


def test_a_start_and_a_reload_refuse_and_what_it_made_is_evicted(
    engines: Installed, tmp_path: Path
) -> None:
    module, why = wasm.adder(1), "its code has a known vulnerability (TEST-1)"
    with (
        Warned(tmp_path, GOOD, BAD, vulnerable_engines="refuse", default_engine=BAD) as one,
        one.daemon.client(max_attempts=1) as client,
    ):
        assert one.known().keys() == {GOOD}
        assert f"{BAD} is not served: {why}" in one.daemon.banner
        assert BAD in one.daemon.wait_for_log('"engine is not served"')
        assert len(workers_of(one.daemon.pid)) == 1
        for named in (BAD, None):  # No other takes the place of the default.
            with pytest.raises(EngineUnknown):
                client.compile(module, engine=named)
        assert not [line for line in one.reload() if line["event"] == "engine is not served"]
        one.write(vulnerable_engines="warn")
        assert warnings(one.reload()) == {BAD: ["TEST-1"]}
        assert {client.compile(module, engine=each).header.origin for each in (BAD, GOOD)} == {3}

        one.write(vulnerable_engines="refuse")
        logged = one.reload()
        assert not warnings(logged)
        [told] = [line for line in logged if line["event"] == "engine is not served"]
        assert told["engine"] == BAD
        assert one.known().keys() == {GOOD}
        [unserved] = client.capabilities().unserved_engines
        assert (unserved.id, unserved.cause) == (BAD, told["cause"])
        assert why in unserved.cause
        assert f" {BAD} its code has" in " ".join(one.shown("engines").split())
        assert one.page()["unserved"] == {BAD: told["cause"]}
        with pytest.raises(EngineRemoved, match=GOOD):
            client.compile(module, engine=BAD)
        eventually(lambda: len(workers_of(one.daemon.pid)) == 1, "its worker has not ended")
        evicted = json.loads(one.shown("evict", "--engine", BAD, "--yes", "--json"))
        assert int(evicted["artifacts"]) > 0
        # That of the other stays.
        assert client.compile(module, engine=GOOD).header.origin == 1


def test_a_reload_starts_no_engine_that_is_refused(engines: Installed, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with Warned(tmp_path, GOOD, vulnerable_engines="refuse") as one:
        row = ROW.replace(">= 50.0.1", ">= 0.0.1").replace('compilers = ["winch"]\n', "")
        one.advisories.write_text(row)
        made = environment(tmp_path / "state" / "engines")
        at_import(made, f"with open({str(starts)!r}, 'a') as file:", "    file.write('started ')")
        for _ in range(2):
            one.reload()
            assert starts.read_text() == "started "
            assert f"{made.name} its code has" in " ".join(one.shown("engines").split())
        one.write(vulnerable_engines="warn")
        one.reload()
        assert starts.read_text() == "started started "
