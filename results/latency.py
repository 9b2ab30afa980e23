"""Sweeps over settings of the trained networks: `python -m results.latency`.

Runs simulate.py on what `results.reproduce fashion_mnist` left in runs/fashion_mnist, which goes on
where it stopped, and writes results/latency: tables, plots and every curve.  What has not been
trained is left out.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.pages import WIDTH, item, source, table
from results.records import ROOT, Command, load
from tcl_jax.cli import simulate
from tcl_jax.cli.options import check_options
from tcl_jax.cli.terminal import reported_at_exit
from tcl_jax.report.sweep import Row, estimates, fitting, percent, rows
from tcl_jax.runs.delay import AutoDelay
from tcl_jax.runs.simulate import latencies
from tcl_jax.runs.sweep import POINTS

RUNS = Path("runs") / "fashion_mnist"
RESULTS = ROOT / "results" / "latency"


@dataclass(frozen=True)
class Sweep:
    """One command, and its table.

    Attributes:
        run: its folder in runs/fashion_mnist.
        options: of simulate.py.
    """

    run: str
    options: tuple[str, ...]

    @property
    def command(self) -> Command:
        output = ("--output", str((RESULTS / self.run).relative_to(ROOT)))
        return Command("simulate.py", (str(RUNS / self.run), *self.options, *output))

    def points(self) -> list[dict[str, Any]] | None:
        """The kept simulations that the command asks for, in its order; None if one is missing."""
        kept = load(RESULTS / self.run / POINTS).values()
        o = check_options(simulate.Options, None, self.command.arguments, prog="simulate.py")
        found = []
        for (_, norm), way in itertools.product(o.named(), o.settings()):
            wanted = {"norm": str(norm), "images": o.images} | {
                of: way.said()[of] for of in ("neurons", "coding", "readout", "seed")
            }
            auto = isinstance(way, AutoDelay)
            wanted |= {"delay_estimated": auto} | ({} if auto else {"delay": way.said()["delay"]})
            these = [
                point | {"accuracy": point["accuracy"][: o.timesteps]}
                for point in kept
                if all(point.get(name) == value for name, value in wanted.items())
                and point["timesteps"] >= o.timesteps
            ]
            if not these:
                return None
            found.append(these[-1])
        return found


_ALL = ("--neurons", "if,if:v0=0.5", "--readout", "spikes,membrane")
_DEEP = (
    *("--neurons", "if,if:v0=0.5", "--delay", "0,auto"),
    *("--timesteps", "150", "--images", "2000"),
)
SWEEPS = (
    Sweep(
        "cnet-tcl",
        ("--norm", "tcl,max,percentile:99.9", *_ALL, "--timesteps", "100", "--images", "10000"),
    ),
    Sweep(
        "resnet20-tcl",
        ("--norm", "tcl,percentile:99.9", *_DEEP),
    ),
    Sweep(
        "resnet20-relu",
        ("--norm", "max,percentile:99.9", *_DEEP),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report-only", action="store_true", help="rewrite the page")
    options = parser.parse_args()
    if not options.report_only:
        for sweep in SWEEPS:
            if (ROOT / RUNS / sweep.run).exists():
                sweep.command.run()
    report()
    return 0


def report() -> None:
    """Write the page, of those sweeps that are whole."""
    lines = [
        "# Accuracy against latency",
        "",
        "Written by `python -m results.latency`: test accuracy in % by latency T, on",
        "Fashion-MNIST's first test images.  `sweep.csv` in each folder has every T.",
    ]
    left_out = []
    for sweep in SWEEPS:
        points = sweep.points()
        if points is None:
            left_out.append(item(f"{sweep.run}: its sweep has not run to its end."))
            continue
        lines += ["", f"## {sweep.run}", "", *_section(sweep.run, points)]
    if left_out:
        lines += ["", "## Left out", "", *left_out]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _section(run: str, points: list[dict[str, Any]]) -> Iterator[str]:
    common, found = rows(points)
    yield from item(f"{common}.").removeprefix("- ").split("\n")
    columns = {f"T = {t}": _column(found, t) for t in latencies(found[0].accuracy.shape[1])}
    labels = [row.label for row in found]
    for part in fitting(labels, {}, columns, WIDTH):
        yield ""
        yield from table(("", *part), list(zip(labels, *part.values(), strict=True)))
    yield from ("", *(item(f"{line}.") for line in estimates(found)))
    anns = dict.fromkeys(percent(row.ann) for row in found)
    yield from ("", f"The ANN: {', '.join(anns)}.", "", f"![{common}]({run}/sweep.png)", "")
    yield from dict.fromkeys(line for point in points for line in source(point))


def _column(found: list[Row], t: int) -> list[str]:
    return [percent(row.accuracy[:, t - 1]) for row in found]


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
