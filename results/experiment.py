"""Report of an experiment: curves side by side, history of λ, and how they came about."""

import csv
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.pages import WIDTH, item, table
from tcl_jax import provenance
from tcl_jax.report.names import by_number
from tcl_jax.report.plots import plot_curves, plot_lambda, plot_training
from tcl_jax.training.log import METRICS, read

_LATENCIES = (4, 8, 16, 20, 25, 30, 35, 50, 100, 150)


@dataclass(frozen=True)
class Curve:
    """One spiking network's accuracy against latency, and where it came from.

    Attributes:
        label: name of the method.
        run: folder of the trained network's record.
        snn: name of the spiking network in it.
        accuracy: at T = 1, 2, ...
        summary: of the simulation.
        epochs: the training's records, one an epoch.
        environment: of the training.
    """

    label: str
    run: Path
    snn: str
    accuracy: tuple[float, ...]
    summary: Mapping[str, Any]
    epochs: tuple[Mapping[str, Any], ...]
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, label: str, run: Path, snn: str) -> "Curve":
        """Read what a run left in its folder."""
        with (run / snn / "curve.csv").open(newline="", encoding="utf-8") as file:
            accuracy = tuple(float(row["accuracy"]) for row in csv.DictReader(file))
        return cls(
            label,
            run,
            snn,
            accuracy,
            json.loads((run / snn / "summary.json").read_text(encoding="utf-8")),
            tuple(r for r in read(run / METRICS) if r["kind"] == "epoch"),
            json.loads((run / "environment.json").read_text(encoding="utf-8")),
        )

    def at(self, t: int) -> float | None:
        """Accuracy at latency T, if the simulation went so far."""
        return self.accuracy[t - 1] if t <= len(self.accuracy) else None


def write_report(
    name: str,
    groups: Mapping[str, Sequence[Curve]],
    left_out: Sequence[str],
    folder: Path,
    readme: Path,
) -> None:
    """Write plots and a page into an experiment's folder, and its tables into the README.

    Args:
        name: of the experiment and its data.
        groups: curves by network.
        left_out: what there is no curve of, and why.
        folder: the experiment's.
        readme: holds ``<!-- results:NAME -->`` and ``<!-- end:NAME -->``; what stands between is
            replaced.
    """
    for network, curves in groups.items():
        plot_curves(
            {c.label: c.accuracy for c in curves},
            {
                "with TCL" if c.summary["tcl"] else "without": c.summary["ann_accuracy"]
                for c in curves
            },
            folder / f"{network}.png",
            title=f"{network} on {name}, {curves[0].summary['images']} test images",
        )
        for curve in curves:
            _write_history(curve)

    def sections(plots: str) -> list[str]:
        found = [_section(network, curves, plots) for network, curves in groups.items()]
        if left_out:
            reasons = [item(f"{reason}.") for reason in left_out]
            found.append("\n".join(["### Left out of the tables", "", *reasons, ""]))
        return found

    page = [
        f"# Results on {name}",
        "",
        f"Made by `python -m results.reproduce {name}`, this page included.",
        "",
        *sections(""),
        "## Commands",
        "",
        *_commands(groups),
        "",
    ]
    (folder / "README.md").write_text("\n".join(page), encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    plots = f"{folder.relative_to(readme.parent)}/"
    block = "\n".join([f"<!-- results:{name} -->", "", *sections(plots), f"<!-- end:{name} -->"])
    pattern = re.compile(f"<!-- results:{name} -->.*<!-- end:{name} -->", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: block, text), encoding="utf-8")


def _write_history(curve: Curve) -> None:
    plot_training(curve.epochs, curve.run / "training.png", title=curve.run.name)
    layers = by_number(curve.epochs[-1]["lambda"])
    if not layers:
        return
    history = {layer: [r["lambda"][layer] for r in curve.epochs] for layer in layers}
    with (curve.run / "lambda.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("epoch", *layers))
        writer.writerows(zip([r["epoch"] for r in curve.epochs], *history.values(), strict=True))
    plot_lambda(history, curve.run / "lambda.png", title=f"{curve.run.name}: λ during training")


def _section(network: str, curves: Sequence[Curve], plots: str) -> str:
    """A network's plot, which is in a folder, its table and what that says.

    The table has a row for each latency: there are more of them than methods.
    """
    longest = max(len(c.accuracy) for c in curves)
    rows = [
        (t, *("–" if (a := c.at(t)) is None else f"{100 * a:.2f}" for c in curves))
        for t in _LATENCIES
        if t <= longest
    ]
    ann = ("ANN", *(f"{100 * c.summary['ann_accuracy']:.2f}" for c in curves))
    summary = curves[0].summary
    seeds = {
        json.loads((c.run / "config.json").read_text(encoding="utf-8"))["seed"] for c in curves
    }
    epochs = {c.epochs[-1]["epoch"] for c in curves}
    machines = {provenance.machine(c.environment) for c in curves}
    conditions = (
        f"{summary['images']:,} test images, {summary['readout']} readout, "
        f"V(0) = {summary['v0']:g}; trained for {_either(epochs)} epochs, "
        f"seed {_either(seeds)}, one run each, on {_either(machines)}."
    )
    return "\n".join(
        [
            f"### {network}: SNN test accuracy (%) by latency T",
            "",
            f"![accuracy against latency, {network}]({plots}{network}.png)",
            "",
            *table(("T", *(c.label for c in curves)), [*rows, ann]),
            "",
            *textwrap.wrap(conditions, WIDTH),
            "",
            *_findings(curves),
            "",
        ]
    )


def _either(values: Iterable[Any]) -> str:
    return " or ".join(map(str, sorted(values)))


def _findings(curves: Sequence[Curve]) -> list[str]:
    """What the table says of TCL, in words that follow from its figures."""
    tcl = next((c for c in curves if c.summary["tcl"]), None)
    if tcl is None:
        return []
    found = []
    baselines = [c for c in curves if c is not tcl]
    if baselines:
        gap = 100 * (baselines[0].summary["ann_accuracy"] - tcl.summary["ann_accuracy"])
        side = "below" if gap > 0 else "above"
        found.append(f"The ANN with TCL is {abs(gap):.2f} points {side} the one without.")
    for t in (25, 100, 150):
        accuracy = tcl.at(t)
        if accuracy is not None:
            loss = 100 * (tcl.summary["ann_accuracy"] - accuracy)
            found.append(f"TCL's conversion loss at T={t}: {loss:+.2f} points.")
    for other in baselines:
        shared = range(1, min(50, len(tcl.accuracy), len(other.accuracy)) + 1)
        level = [t for t in shared if tcl.accuracy[t - 1] == other.accuracy[t - 1]]
        behind = [t for t in shared if tcl.accuracy[t - 1] < other.accuracy[t - 1]]
        where = f"at every T from 1 to {shared[-1]}"
        rest = [
            f"{word} at T = {_ranges(exceptions)}"
            for word, exceptions in (("level", level), ("behind", behind))
            if exceptions
        ]
        where += f", except: {', '.join(rest)}" if rest else ""
        found.append(f"TCL is above the {other.label} {where}.")
    return list(map(item, found))


def _ranges(numbers: Sequence[int]) -> str:
    """Rising whole numbers, neighbours drawn together: 1–3, 7."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in runs)


def _commands(groups: Mapping[str, Sequence[Curve]]) -> list[str]:
    """Every command that was run, with the commit of the code that ran it, and the machine."""
    found = []
    for curves in groups.values():
        for c in curves:
            conversion = json.loads((c.run / c.snn / "conversion.json").read_text(encoding="utf-8"))
            for about in (c.environment, conversion, c.summary):
                where = f"commit {provenance.short(about['commit'])}; {provenance.machine(about)}"
                found.append(f"- `{about['command']}` ({where})")
    return list(dict.fromkeys(found))
