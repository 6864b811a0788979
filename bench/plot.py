"""Pictures of figures for the documentation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.lab import ROOT
from bench.rows import Row

FILE = ROOT / "docs" / "reference" / "performance.svg"

# Greys and colours that are readable on white and on dark pages.
_TEXT, _MET, _MISSED = "#818b98", "#2da44e", "#e5534b"


def drawn(
    kind: str,
    title: str,
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colors: Sequence[str],
    **more: Any,
) -> bytes:
    """Return a picture of a kind of pygal's. The same figures make the same bytes."""
    # Only here: it leaves a finder in sys.meta_path that pytest cannot import through.
    import pygal
    from pygal.style import Style

    texts = {"foreground": _TEXT, "foreground_strong": _TEXT, "foreground_subtle": _TEXT}
    clear = {"background": "transparent", "plot_background": "transparent"}
    style = Style(colors=colors, **texts, **clear)
    usual = {"no_prefix": True, "js": (), "width": 1100, "legend_at_bottom": True}
    chart = getattr(pygal, kind)(style=style, title=title, x_labels=labels, **usual, **more)
    for name, figures in series.items():
        chart.add(name, figures)
    text: str = chart.render(is_unicode=True)
    # What serves pygal's tooltips: a picture in a page runs no script.
    return f"{re.sub('<script.*?</script>', '', text, flags=re.DOTALL)}\n".encode()


def svg(rows: Sequence[Row]) -> bytes:
    """Return the ratios with their goals, as a picture of docs/reference/performance.md."""
    return drawn(
        "HorizontalLine",
        "Ratios to yardsticks, on a logarithmic axis: less is better",
        [f"{row.group}: {row.what}" for row in rows],
        {
            "ratio, goal met": [row.ratio if row.met else None for row in rows],
            "ratio, goal missed": [None if row.met else row.ratio for row in rows],
            "goal: at most": [row.goal for row in rows],
        },
        colors=(_MET, _MISSED, _TEXT),
        logarithmic=True,
        stroke=False,
        height=24 * len(rows) + 150,
        truncate_label=-1,
    )
