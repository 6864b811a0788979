"""Orders to warm up an engine are read as they were written, and in no other form."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs
from wasmkilnd.engines.install.warm_orders import WarmOrder, WarmOrders


def test_orders_are_read_as_they_were_written(tmp_path: Path) -> None:
    orders, order = WarmOrders(tmp_path), WarmOrder("wasmtime-50.0.1", "wasmtime-49.0.0", 20)
    assert orders.read(["wasmtime-50.0.1"]) == []
    orders.write(order)
    assert orders.read(["wasmtime-50.0.1", "wasmer-1.1.0", "../x"]) == [order]
    assert orders.read(["wasmer-1.1.0"]) == []
    endless = '{"version": 1, "from": "wasmtime-49.0.0", "top": 1e999}'
    foreign = '{"version": 1, "from": "../x", "top": 1}'
    for text in ("{", "[]", "[" * 5000, "\0" * 9000, foreign, '{"version": 9}', endless):
        (tmp_path / "warm-ups" / "wasmtime-50.0.1.json").write_text(text)
        with capture_logs() as logs:
            assert orders.read(["wasmtime-50.0.1"]) == []
        # An operator who ordered it learns that names move at once.
        (line,) = logs
        assert (line["engine"], line["cause"]) == ("wasmtime-50.0.1", "it is damaged")
    orders.remove("wasmtime-50.0.1")
    orders.remove("wasmtime-50.0.1")
    with pytest.raises(ValueError, match="no engine"):
        orders.remove("../x")
