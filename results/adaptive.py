"""Adaptive latency and energy of the trained networks: `python -m results.adaptive`.

Runs simulate.py on what `results.reproduce fashion_mnist` left in runs/fashion_mnist, where it
has not yet with today's settings, and writes results/adaptive: tables, and every figure's record
beside its plot.  What has not been trained is left out.
"""

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results.pages import item, table
from results.records import ROOT, Command, load, unsimulated
from tcl_jax import provenance
from tcl_jax.cli.terminal import reported_at_exit
from tcl_jax.simulation import IF

RUNS, TRAINED = ROOT / "runs" / "fashion_mnist", ROOT / "results" / "fashion_mnist"
RESULTS = ROOT / "results" / "adaptive"
SNN = "snn-tcl"


@dataclass(frozen=True)
class Experiment:
    """One network's simulations.

    Attributes:
        run: its folder in runs/fashion_mnist.
        v0: membrane potential at the start, as a fraction of the threshold.
        timesteps: the longest latency T.
        images: test images for adaptive latency.
        calibration_images: training images, from the last.
        energy_images: test images whose operations are counted.
    """

    run: str
    v0: float
    timesteps: int
    images: int
    calibration_images: int
    energy_images: int

    def commands(self) -> Iterator[tuple[str, Command]]:
        """What each of the two records is called, and the command that makes it."""
        run = f"runs/fashion_mnist/{self.run}"
        where = (run, "--snn", SNN, "--output", f"{run}/adaptive")
        size = ("--timesteps", str(self.timesteps), "--neurons", str(IF(v0=self.v0)), "--images")
        held = ("--calibration-images", str(self.calibration_images), "--max-loss", "0.1")
        adaptive, energy = (str(self.images), "--adaptive", *held), (str(self.energy_images),)
        yield "adaptive", Command("simulate.py", (*where, *size, *adaptive))
        yield "energy", Command("simulate.py", (*where, *size, *energy, "--energy"))


EXPERIMENTS = (
    Experiment("resnet20-tcl", 0.5, 150, 2000, 1000, 500),
    Experiment("cnet-tcl", 0.0, 100, 10_000, 2000, 1000),
    Experiment("vgg16-tcl", 0.5, 150, 10_000, 2000, 1000),
    Experiment("mobilenet-tcl", 0.5, 150, 2000, 1000, 500),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report-only", action="store_true", help="rewrite the tables")
    options = parser.parse_args()
    if not options.report_only:
        trained = [e for e in EXPERIMENTS if (RUNS / e.run / SNN).exists()]
        for e in trained:
            make(e, RUNS / e.run)
        for e in trained:  # not before: all commands shall run on the commit without changes
            keep(RUNS / e.run, RESULTS / e.run)
    report()
    return 0


def make(e: Experiment, run: Path) -> None:
    """Run those commands whose records a run's folder lacks."""
    for what, command in e.commands():
        if reason := unsimulated(command, run / "adaptive" / f"{what}.json", run / SNN):
            print(f"{e.run}, {what}: {reason}", flush=True)
            command.run()


def keep(run: Path, kept: Path) -> None:
    """Copy records and plots to where they are kept, with the environment of the training."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(run / "adaptive", kept)
    shutil.copy(run / "environment.json", kept)


def report() -> None:
    """Write the tables of those records that today's commands would write."""
    records: dict[str, list[Any]] = {"adaptive": [], "energy": []}
    left_out, trainings, plots = [], [], []
    for e in EXPERIMENTS:
        for what, command in e.commands():
            record = RESULTS / e.run / f"{what}.json"
            if reason := unsimulated(command, record, TRAINED / e.run / SNN):
                left_out.append(item(f"{e.run}, {what}: {reason}."))
                continue
            records[what].append(load(record))
            trainings.append(load(RESULTS / e.run / "environment.json"))
            if record.with_suffix(".png").exists():
                plots += ["", f"![{e.run}, {what}]({e.run}/{what}.png)"]
    adaptive, energy = records["adaptive"], records["energy"]
    rows = [
        "# Adaptive latency, and energy",
        "",
        "Written by `python -m results.adaptive`; each figure's record and plots are in the",
        "network's folder.",
        "",
        "## Adaptive latency",
        "",
        "Accuracy in %, on Fashion-MNIST's first test images.  The bound on margins was found",
        "on the last training images (0.1 points allowed), of which the networks are surer than",
        "of test images; the loss is the one on test images.",
        "",
        *decisions(adaptive),
        "",
        "Seconds are of one pass each, compiled before, on the machine that stands with the",
        "command below.",
        "",
        "## Energy at fixed latencies",
        "",
        "Of an image on average, in µJ, at Horowitz's 0.9 pJ an addition and 4.6 pJ a",
        "multiply-accumulate (32-bit floats, 45 nm); accuracy on the same images, in %.",
        *energies(energy),
    ]
    if left_out:
        rows += ["", "## Left out", "", *left_out]
    rows += ["", "## Commands", ""]
    for content in (*trainings, *adaptive, *energy):
        commit = provenance.short(content["commit"])
        row = f"- `{content['command']}` (commit {commit}; {provenance.machine(content)})"
        rows += [row] * (row not in rows)
    (RESULTS / "README.md").write_text("\n".join([*rows, *plots]) + "\n", encoding="utf-8")


def decisions(records: list[Any]) -> list[str]:
    """A column for each network: there are more figures than networks."""
    if not records:
        return ["No network has been measured."]
    figures: dict[str, list[str]] = defaultdict(list)
    for a in records:
        at, seconds, by = a["accuracy_fixed_at_mean"], a["seconds"], a["percentiles"]
        loss = 100 * (a["accuracy_fixed"] - a["accuracy"])
        figures["images"].append(a["images"])
        figures["V(0)/θ"].append(f"{a['v0']:g}")
        figures["fixed T"].append(a["timesteps"])
        figures["accuracy at fixed T"].append(f"{100 * a['accuracy_fixed']:.2f}")
        figures["accuracy, adaptive"].append(f"{100 * a['accuracy']:.2f}")
        figures["loss, points"].append(f"{loss:+.2f}")
        figures["mean T"].append(f"{a['mean_steps']:.2f}")
        figures["half stopped by T"].append(f"{by['50']:g}")
        figures["99 % stopped by T"].append(f"{by['99']:g}")
        figures["fixed T ≈ mean T"].append(at["T"])
        figures["accuracy at that"].append(f"{100 * at['accuracy']:.2f}")
        as_good = a.get("fixed_as_accurate") or {}
        figures["as accurate at fixed T"].append(as_good.get("T", "–"))
        figures["seconds, fixed T"].append(f"{seconds['fixed']:.1f}")
        figures["seconds, fixed T as accurate"].append(
            f"{as_good['seconds']:.1f}" if as_good else "–"
        )
        figures["seconds, adaptive"].append(f"{seconds['adaptive']:.1f}")
        figures["that over adaptive"].append(
            f"{as_good['seconds'] / seconds['adaptive']:.2f}" if as_good else "–"
        )
        figures["decisions unlike the whole simulation's"].append(a["differ_from_fixed_simulation"])
    networks = [a["network"] for a in records]
    known = {name: row for name, row in figures.items() if set(row) != {"–"}}
    return table(("", *networks), [(name, *row) for name, row in known.items()])


def energies(records: list[Any]) -> list[str]:
    """Accuracy, operations and energy by T, a table for each network."""
    lines = []
    for e in records:
        rights = e["snn_accuracy"]
        found = [(t, rights[t], at) for t, at in e["at"].items()]
        rows = [
            (
                t,
                f"{100 * right:.2f}",
                f"{at['additions']:,.0f}",
                f"{at['macs']:,}",
                f"{at['energy_uj']:.2f}",
                f"{at['energy_uj'] / e['ann']['energy_uj']:.2f}",
            )
            for t, right, at in [*found, ("ANN", e["ann_accuracy"], e["ann"])]
        ]
        lines += ["", f"### {e['network']}, {e['images']} images, V(0) = {e['v0']:g} θ", ""]
        lines += table(("T", "accuracy", "ACs", "MACs", "energy", "of the ANN's"), rows)
    return lines


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
