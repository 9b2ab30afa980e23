"""What many simulations found, side by side: named by what differs, with the spread over seeds."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tcl_jax.record import whole

Point = Mapping[str, Any]
"""One simulation: what was simulated and how, ``accuracy`` and perhaps ``top5`` at T = 1, 2, ..."""


@dataclass(frozen=True)
class Row:
    """Simulations that differ in seeds alone, of the training or of the coding.

    Attributes:
        label: what makes them others than those of other rows; empty if nothing does.
        accuracy: one an array a simulation, at T = 1, 2, ...
        top5: likewise, where there are many classes.
        ann: the trained network's accuracy, for each.
        ann_top5: likewise; empty where it is not known.
        estimated: delays, where they were estimated.
    """

    label: str
    accuracy: Float[np.ndarray, "seeds t"]
    top5: Float[np.ndarray, "seeds t"] | None
    ann: Float[np.ndarray, " seeds"]
    ann_top5: Float[np.ndarray, " seeds"]
    estimated: tuple[int, ...] = ()

    @property
    def seeds(self) -> int:
        return len(self.accuracy)


def spread(values: Float[np.ndarray, "seeds ..."]) -> Float[np.ndarray, "..."] | None:
    """The standard deviation of a sample; of one value there is none.

    >>> spread(np.array([[0.9, 0.5], [0.7, 0.5]])).round(4).tolist()
    [0.1414, 0.0]
    """
    return np.asarray(values.std(axis=0, ddof=1)) if len(values) > 1 else None


def rows(points: Sequence[Point]) -> tuple[str, list[Row]]:
    """What all simulations have in common, in words, and what each found, in their order.

    Args:
        points: at least one, of one length.

    >>> of = {"run": "runs/a", "network": "cnet", "norm": "tcl", "coding": "analog", "seed": 0}
    >>> found = {"accuracy": [0.5, 0.9], "ann_accuracy": 0.95}
    >>> common, (one, other) = rows([of | found, of | found | {"norm": "max"}])
    >>> common, one.label, other.label
    ('cnet, analog coding', 'tcl', 'max')
    """
    names = _names(points)
    parts = list(dict.fromkeys(part for of_one in names for part in of_one))
    values = {part: [of_one.get(part, "") for of_one in names] for part in parts}
    same = [part for part in parts if len(set(values[part])) == 1]
    common = [_said(part, values[part][0]) for part in same if part != "run"]
    groups: dict[str, list[Point]] = {}
    for point, of_one in zip(points, names, strict=True):
        label = ", ".join(of_one[part] for part in parts if part not in same and part in of_one)
        groups.setdefault(label, []).append(point)
    return ", ".join(common), [_row(label, group) for label, group in groups.items()]


def percent(values: Float[np.ndarray, " seeds"]) -> str:
    """The mean in percent, and below it the standard deviation where values differ.

    >>> percent(np.array([0.9, 0.7])), percent(np.array([0.5, 0.5])), percent(np.array([]))
    ('80.00\\n±14.14', '50.00', '–')
    """
    if not len(values):
        return "–"
    apart = None if np.ptp(values) == 0 else spread(values)
    return f"{100 * values.mean():.2f}" + ("" if apart is None else f"\n±{100 * float(apart):.2f}")


def fitting(
    labels: Sequence[str],
    always: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]],
    width: int,
) -> Iterator[dict[str, Sequence[str]]]:
    """Columns in parts, each of which fits beside the labels and what is always there.

    >>> parts = fitting(["tcl", "max"], {}, {"4": ["50", "40"], "8": ["60", "50"]}, width=12)
    >>> list(map(list, parts))
    [['4'], ['8']]
    """

    def taken(heading: str, cells: Sequence[str]) -> int:
        return 3 + max(len(line) for cell in (heading, *cells) for line in cell.split("\n"))

    room = width - 1 - min(43, taken("", labels)) - sum(starmap(taken, always.items()))
    part: dict[str, Sequence[str]] = {}
    for name, cells in columns.items():
        if part and sum(starmap(taken, part.items())) + taken(name, cells) > room:
            yield part
            part = {}
        part[name] = cells
    yield part


def estimates(found: Sequence[Row]) -> list[str]:
    """The delays that were estimated, a sentence for each row that has some."""
    return [
        f"{row.label or 'SNN'}: a delay of {' or '.join(map(str, row.estimated))} was estimated"
        for row in found
        if row.estimated
    ]


def write_points(points: Sequence[Point], path: Path) -> None:
    """A table with a row for each simulation and latency T, as programs read it.

    Of the settings of the trainings there are those that differ, and the seed.
    """
    names = list(dict.fromkeys(name for point in points for name in point))
    settings = {f"trained.{name}": name for name in (*_differing(points), "seed")}
    found = [name for name in ("accuracy", "top5") if name in names]
    ann = [name for name in names if name.startswith("ann_")]
    of_all = [name for name in names if name not in (*found, *ann, "trained")]
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*of_all, *settings, "T", *found, *ann))
        for point in points:
            trained = point.get("trained") or {}
            said = [*map(point.get, of_all), *map(trained.get, settings.values())]
            for i in range(len(point["accuracy"])):
                at = [point[name][i] if name in point else None for name in found]
                writer.writerow((*said, i + 1, *at, *map(point.get, ann)))


def _row(label: str, group: Sequence[Point]) -> Row:
    known = [p["ann_top5_accuracy"] for p in group if p.get("ann_top5_accuracy") is not None]
    return Row(
        label,
        np.array([p["accuracy"] for p in group]),
        np.array([p["top5"] for p in group]) if "top5" in group[0] else None,
        np.array([p["ann_accuracy"] for p in group]),
        np.array(known if len(known) == len(group) else []),
        tuple(sorted({p["delay"] for p in group if p.get("delay_estimated")})),
    )


def _differing(points: Sequence[Point]) -> list[str]:
    """Settings in which trainings of one network on the same data differ; the seed is none."""
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for p in points:
        if p.get("trained"):
            groups.setdefault((p.get("network"), p.get("data")), []).append(p["trained"])
    every = [trained for group in groups.values() for trained in group]
    names = dict.fromkeys(name for trained in every for name in trained if name != "seed")
    return [
        name
        for name in names
        if any(len({str(t.get(name)) for t in group}) > 1 for group in groups.values())
    ]


def _names(points: Sequence[Point]) -> list[dict[str, str]]:
    """What tells each from the others, part by part.

    The run by settings of its training, so that those of several seeds have one name, or where that
    does not tell them apart by its folder.
    """
    runs = {p["run"]: p.get("trained") or {} for p in points}
    told = all(runs.values()) and len({str(t) for t in runs.values()}) == len(runs)
    settings = _differing(points)
    networks = {(p["run"], p.get("snn")): (p["run"], _norm(p)) for p in points}
    by_norm = len(set(networks.values())) == len(networks)
    steps = {(p["run"], p.get("checkpoint_step")) for p in points}
    names = []
    for p in points:
        of_run = [f"{_short(n, settings)}={runs[p['run']].get(n)}" for n in settings]
        norm = {"norm": _norm(p)} if by_norm else {"snn": p.get("snn")}
        name = {
            "run": ", ".join(of_run) if told else p["run"],
            "network": p.get("network"),
            "data": p.get("data"),
            "images": f"{p['images']:,} test images" if "images" in p else None,
            **norm,
            "step": f"step {p.get('checkpoint_step')}" if len(steps) > len(runs) else None,
            **{of: p.get(of) for of in ("neurons", "coding", "readout")},
            "delay": _delay(p) if any(q.get("delay") for q in points) else None,
        }
        names.append({part: str(v) for part, v in name.items() if v not in (None, "")})
    return names


def _delay(point: Point) -> str:
    return f"delay {'auto' if point.get('delay_estimated') else point['delay']}"


def _norm(point: Point) -> str | None:
    weights = point.get("weights", "float32")
    return point.get("norm") if weights == "float32" else f"{point.get('norm')} {weights}"


def _short(name: str, names: Sequence[str]) -> str:
    """A setting without its section, unless another's is the same then."""
    last = name.split(".")[-1]
    return name if sum(n.split(".")[-1] == last for n in names) > 1 else last


def _said(part: str, value: str) -> str:
    """A part by itself, which its value alone may not tell."""
    return f"{value} {part}" if part in ("norm", "neurons", "coding", "readout") else value
