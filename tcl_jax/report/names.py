"""Names of layers, for where there is little room."""

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile


def shortened(names: Sequence[str], heading: str) -> tuple[str, list[str]]:
    """Names without what all paths among them start and end with.

    Args:
        names: of nodes; those that are no path, such as the output's, are left as they are.
        heading: for names that have nothing in common.

    Returns:
        The heading of the names, which says what is left out, and the names; of different ones
        different.

    >>> shortened(["CNET/act1/tcl/neuron", "CNET/act2/tcl/neuron", "output"], "neurons")
    ('CNET/…/tcl/neuron', ['act1', 'act2', 'output'])
    >>> shortened(["neuron", "neuron_2"], "neurons")
    ('neurons', ['neuron', 'neuron_2'])
    """
    paths = [name.split("/") for name in names if "/" in name]
    most = min(map(len, paths), default=1) - 1  # one part of each is left
    start = _start(paths)[:most] if len(paths) > 1 else []
    end = _start([path[::-1] for path in paths])[: most - len(start)][::-1] if start else []
    head, tail = "/".join([*start, ""]), "/".join(["", *end])
    short = [n.removeprefix(head).removesuffix(tail) if "/" in n else n for n in names]
    if not start or len(set(short)) < len(set(names)):
        return heading, list(names)
    return f"{head}…{tail}", short


def by_number(names: Iterable[str]) -> list[str]:
    """Names in the order in which they follow each other in a network.

    >>> by_number(["act10", "act2"])
    ['act2', 'act10']
    """
    return sorted(
        names, key=lambda n: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", n)]
    )


def _start(paths: Sequence[Sequence[str]]) -> list[str]:
    """What all begin with."""
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return [parts[0] for parts in same]
