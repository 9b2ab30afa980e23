"""Sweeps, early decisions and energy of the trained networks: `python -m results.latency`.

Runs simulate.py on what `results.reproduce fashion_mnist` left in runs/fashion_mnist, which goes on
where it stopped, and writes results/latency: tables, plots and every curve.  What has not been
trained is left out.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.adaptive import decisions, energies
from results.pages import WIDTH, item, source, table
from results.records import ROOT, Command, load, unsimulated
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
    """A trained network, and the commands that say what it can do.

    Attributes:
        run: its folder in runs/fashion_mnist.
        options: of simulate.py, for a sweep.
        decided: likewise, for decisions as soon as a class is safe.
        counted: likewise, for energy.
    """

    run: str
    options: tuple[str, ...]
    decided: tuple[str, ...] = ()
    counted: tuple[str, ...] = ()

    @property
    def kept(self) -> Path:
        """The folder of all records."""
        return RESULTS / self.run

    @property
    def command(self) -> Command:
        return self._command(self.options)

    def _command(self, options: tuple[str, ...]) -> Command:
        output = ("--output", str(self.kept.relative_to(ROOT)))
        return Command("simulate.py", (str(RUNS / self.run), *options, *output))

    def others(self) -> dict[str, Command]:
        """The commands but for the sweep's, by the record that they write."""
        found = {}
        if self.decided:
            found["adaptive"] = self._command((*self.decided, "--adaptive"))
        if self.counted:
            found["energy"] = self._command((*self.counted, "--energy"))
        return found

    def record(self, what: str) -> dict[str, Any]:
        """What such a command wrote, if it is of one of the sweep's networks; else nothing."""
        networks = {point["snn_fingerprint"] for point in self.points() or []}
        record = load(self.kept / f"{what}.json")
        return record if record.get("snn_fingerprint") in networks else {}

    def make(self) -> None:
        """Run what has not been run."""
        self.command.run()
        of_norm = {point["norm"]: point["snn"] for point in self.points() or []}
        for what, command in self.others().items():
            snn = ROOT / RUNS / self.run / of_norm["tcl"]
            if reason := unsimulated(command, self.kept / f"{what}.json", snn):
                print(f"{self.run}, {what}: {reason}", flush=True)
                command.run()

    def points(self) -> list[dict[str, Any]] | None:
        """The kept simulations that the command asks for, in its order; None if one is missing."""
        kept = load(self.kept / POINTS).values()
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
_HALF = ("--neurons", "if:v0=0.5", "--timesteps", "150")
_SAFE = ("--calibration-images", "2000", "--max-loss", "0.1")
SWEEPS = (
    Sweep(
        "cnet-tcl",
        ("--norm", "tcl", *_ALL, "--timesteps", "100", "--images", "2000"),
        ("--norm", "tcl", "--timesteps", "100", "--images", "10000", *_SAFE),
        ("--norm", "tcl", "--timesteps", "100", "--images", "1000"),
    ),
    Sweep(
        "resnet20-tcl",
        ("--norm", "tcl", *_DEEP),
        ("--norm", "tcl", *_HALF, "--images", "2000", *_SAFE),
        ("--norm", "tcl", *_HALF, "--images", "500"),
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
                sweep.make()
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
    records: dict[str, dict[str, Any]] = {"adaptive": {}, "energy": {}}
    left_out = []
    for sweep in SWEEPS:
        points = sweep.points()
        if points is None:
            left_out.append(item(f"{sweep.run}: its sweep has not run to its end."))
            continue
        lines += ["", f"## {sweep.run}", "", *_section(sweep.run, points)]
        for what in sweep.others():
            if record := sweep.record(what):
                records[what][sweep.run] = record
                continue
            left_out.append(item(f"{sweep.run}: no {what}.json of the network that was swept."))
    for what, (title, sentences, tables) in _OTHERS.items():
        if found := records[what]:
            lines += ["", f"## {title}", "", *sentences]
            lines += ["", "\n".join(tables(list(found.values()))).strip("\n"), ""]
            lines += dict.fromkeys(line for record in found.values() for line in source(record))
            lines += [f"\n![{run}, {title}]({run}/{what}.png)" for run in found]
    if left_out:
        lines += ["", "## Left out", "", *left_out]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


_OTHERS: dict[str, tuple[str, tuple[str, ...], Callable[[list[Any]], list[str]]]] = {
    "adaptive": (
        "Early decisions",
        (
            "An image ends once its class is safe: the bound on margins was found on the last",
            "training images, of which at most 0.1 points may be lost.  Accuracy in %; seconds of",
            "one pass each, compiled before.",
        ),
        decisions,
    ),
    "energy": (
        "Energy",
        (
            "Of an image on average, in µJ, at Horowitz's 0.9 pJ an addition and 4.6 pJ a",
            "multiply-accumulate (32-bit floats, 45 nm); accuracy on the same images, in %.",
        ),
        energies,
    ),
}
"""What other records say, by their names: heading, sentences, and what makes tables of them."""


def _section(run: str, points: list[dict[str, Any]]) -> Iterator[str]:
    common, found = rows(points)
    yield from item(f"{common}.").removeprefix("- ").split("\n")
    columns = {f"T = {t}": _column(found, t) for t in latencies(found[0].accuracy.shape[1])}
    labels = [row.label for row in found]
    for part in fitting(labels, {}, columns, WIDTH):
        yield ""
        yield from table(("", *part), list(zip(labels, *part.values(), strict=True)))
    if delays := estimates(found):
        yield from ("", *(item(f"{line}.") for line in delays))
    anns = dict.fromkeys(percent(row.ann) for row in found)
    yield from ("", f"The ANN: {', '.join(anns)}.", "", f"![{common}]({run}/sweep.png)", "")
    yield from dict.fromkeys(line for point in points for line in source(point))


def _column(found: list[Row], t: int) -> list[str]:
    return [percent(row.accuracy[:, t - 1]) for row in found]


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
