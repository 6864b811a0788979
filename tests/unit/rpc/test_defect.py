"""A defect of the daemon is told as one, and costs no more than its call."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.e2e import wasm
from tests.e2e.callers import ENGINE
from tests.e2e.daemon import Daemon, state_with
from tests.e2e.grpcurl import Grpcurl
from tests.e2e.test_error_table import documented

FLAWED = Path(__file__).with_name("flawed.py")
FLAGS = ("--workers", "1", "--redis-url", "none")


def test_a_defect_is_told_with_the_id_of_its_line_in_the_log(tmp_path: Path) -> None:
    state = state_with(tmp_path / "state", ENGINE)
    with Daemon(state, FLAGS, command=[sys.executable, str(FLAWED)]) as daemon:
        refused = Grpcurl(daemon.address).refused("wasmkiln.v1.ModuleService/FindMissing", {})
        info = refused.details["ErrorInfo"]
        assert (refused.code, info["reason"]) == ("Internal", "INTERNAL")
        assert (info["domain"], list(refused.metadata)) == ("wasmkiln", ["request_id"])
        assert refused.details.keys() == {"ErrorInfo"}
        request_id = refused.metadata["request_id"]
        assert re.fullmatch("[0-9a-f]{16}", request_id)
        assert "the daemon failed" in refused.message
        for trace in ("Traceback", 'File "', ".py", "Error:", "planted"):
            assert trace not in refused.text
        assert "planted" in json.loads(daemon.wait_for_log(request_id)).get("exception", "")
        with daemon.client() as client:
            assert client.compile(wasm.constant(4711)).bytes
    assert daemon.process.returncode == 0


def test_it_is_documented_so() -> None:
    row = documented()["INTERNAL"]
    assert (row.code, list(row.words)) == ("INTERNAL", ["request_id"])
