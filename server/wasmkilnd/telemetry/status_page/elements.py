"""What several parts of the page are made of: tables, bars, figures, marks."""

from __future__ import annotations

from wasmkilnd.telemetry.status_page.markup import Child, Markup, join, tag


def table(
    caption: str, heads: tuple[str, ...], rows: list[tuple[Child, ...]], style: str | None = None
) -> Markup:
    """Return a table.

    On a narrow screen its rows become blocks, each cell with its head; with the style ``compact``
    without, two cells on a line.
    """
    return tag(
        "table",
        tag("caption", caption, class_="unseen"),
        tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads))),
        tag(
            "tbody",
            *(
                tag(
                    "tr",
                    tag("th", row[0], scope="row"),
                    *(
                        tag("td", tag("span", cell), data_head=head)
                        for cell, head in zip(row[1:], heads[1:], strict=True)
                    ),
                )
                for row in rows
            ),
        ),
        class_=style,
    )


def bar(part: float, label: str, colour: str = "fill") -> Markup:
    """Return a bar that is filled to a part of 1."""
    part = min(1.0, max(0.0, part))
    return tag(
        "svg",
        tag("rect", x=0, y=0, width=100, height=8, class_="track"),
        tag("rect", x=0, y=0, width=f"{part * 100:.1f}", height=8, class_=colour),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
        class_="bar",
        role="img",
        aria_label=label,
    )


def figures(*rows: tuple[str, str, str]) -> Markup:
    """Return figures in a row: each with its name and a remark."""
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", tag("b", value), join(" ", tag("small", remark))))
            for name, value, remark in rows
        ),
        class_="figures",
    )


def mark(words: str, level: str) -> Markup:
    """Return a word with a colour; the word alone says it too."""
    return tag("span", words, class_=f"mark {level}")
