"""The tutorial works as the page says, command by command."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.e2e.console import Shell, same, sessions
from tests.e2e.daemon import fresh_state
from tests.e2e.programs import ROOT, Installed, search_path
from tests.e2e.test_five_minutes import Served, check, free_ports

PAGE = ROOT / "docs" / "start" / "five-minutes.md"


def test_zero_to_a_cached_module(engines: Installed, tmp_path: Path) -> None:
    grpc, http = free_ports(2)
    text = PAGE.read_text().replace("50051", str(grpc))
    [[serve], compiles, [run], [again]] = sessions(text)
    [program] = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "run.py").write_text(program)
    state = fresh_state(tmp_path / "state", own_keys=True, engines=("wasmtime-50.0.1",))
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("WASMKILN_")},
        "PATH": search_path(),
        "WASMKILN_STATE_DIR": str(state),
        "WASMKILN_ADDRESS": f"127.0.0.1:{grpc}",
    }
    daemon = {
        **{k: v for k, v in environ.items() if k != "WASMKILN_ADDRESS"},
        "WASMKILN_LISTEN": f"127.0.0.1:{grpc}",
        "WASMKILN_ADMIN_LISTEN": f"127.0.0.1:{http}",
        "WASMKILN_LOG_FORMAT": "text",  # With it, the banner is printed without a terminal too.
    }
    shell = Shell(tmp_path, environ)

    served = Served(shell, serve.text, tmp_path, daemon)
    try:
        assert same(served.printed, serve.printed), served.printed
        for command in compiles:
            check(shell, command)
        check(shell, run)
    finally:
        assert served.stop() == 0
    served = Served(shell, serve.text, tmp_path, daemon)
    try:
        check(shell, again)
    finally:
        assert served.stop() == 0
