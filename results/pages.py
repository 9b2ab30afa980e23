"""Pages in Markdown that can be read as they are, too."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from tcl_jax import provenance

WIDTH = 80


def item(text: str) -> str:
    """An item of a list, in lines of at most 80 letters.

    >>> print(item("a word " * 14))
    - a word a word a word a word a word a word a word a word a word a word a word a
      word a word a word
    """
    return textwrap.fill(f"- {text}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def source(record: Mapping[str, Any]) -> list[str]:
    """Lines that say where a record's figures are from: machine, commit, seed and command."""
    seed = f"seed {record['seed']}; " if "seed" in record else ""
    commit = provenance.short(record["commit"])
    return textwrap.wrap(
        f"{provenance.machine(record)}; commit {commit}; {seed}`{record['command']}`.", WIDTH
    )


def table(headings: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table with its columns in line: the first to the left, others to the right.

    >>> print("\\n".join(table(("network", "T"), [("cnet", 8), ("vgg16", 100)])))
    | network |   T |
    |:--------|----:|
    | cnet    |   8 |
    | vgg16   | 100 |
    """
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    ]
    rule = [":" + "-" * (widths[0] + 1), *("-" * (w + 1) + ":" for w in widths[1:])]
    head, *body = ("| " + " | ".join(row) + " |" for row in aligned)
    return [head, "|" + "|".join(rule) + "|", *body]
