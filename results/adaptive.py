"""Adaptive latency and energy of the trained networks: `python results/adaptive.py`.

Runs simulate.py on what `results/reproduce.py fashion_mnist` left in runs/fashion_mnist, where it
has not yet, and writes results/adaptive: tables, and every figure's record beside its plot.  What
has not been trained is left out.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tcl_jax import provenance  # noqa: E402
from tcl_jax.report.pages import table  # noqa: E402
from tcl_jax.terminal import reported_at_exit  # noqa: E402


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


EXPERIMENTS = (
    Experiment("resnet20-tcl", 0.5, 150, 2000, 1000, 500),
    Experiment("cnet-tcl", 0.0, 100, 10_000, 2000, 1000),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report-only", action="store_true", help="rewrite the tables")
    options = parser.parse_args()
    folder = ROOT / "results" / "adaptive"
    records: dict[str, list[Any]] = {"adaptive": [], "energy": []}
    for e in EXPERIMENTS:
        count = ("--calibration-images", e.calibration_images, "--max-loss", 0.1)
        for what, images, more in (
            ("adaptive", e.images, count),
            ("energy", e.energy_images, ()),
        ):
            record = folder / e.run / f"{what}.json"
            run = ROOT / "runs" / "fashion_mnist" / e.run
            if (run / "snn-tcl").exists() and not record.exists() and not options.report_only:
                _simulate(e, f"--{what}", images, *more, "--output", record.parent)
                shutil.copy(run / "environment.json", record.parent)  # of its training
            if record.exists():
                records[what].append(json.loads(record.read_text(encoding="utf-8")))
    _write(folder, **records)
    return 0


def _simulate(e: Experiment, what: str, images: int, *more: Any) -> None:
    run = ("simulate.py", f"runs/fashion_mnist/{e.run}", "--snn", "snn-tcl", what)
    size = ("--timesteps", e.timesteps, "--v0", e.v0, "--images", images)
    # Relative, so that records do not depend on where the project lies.
    arguments = [
        str(a.relative_to(ROOT) if isinstance(a, Path) else a) for a in (*run, *size, *more)
    ]
    print("$ python", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _write(folder: Path, adaptive: list[Any], energy: list[Any]) -> None:
    rows = [
        "# Adaptive latency, and energy",
        "",
        "Written by `python results/adaptive.py`; each figure's record and plots are in the "
        "network's folder.",
        "",
        "## Adaptive latency",
        "",
        "Accuracy in %, on Fashion-MNIST's first test images.  The bound on margins was found on "
        "the last training images (0.1 points allowed), of which the networks are surer than of "
        "test images; the loss is the one on test images.",
        "",
        *_adaptive(adaptive),
    ]
    rows += [
        "",
        "Seconds are of one pass each, compiled before.",
        "",
        "## Energy at fixed latencies",
        "",
        "Of an image on average, in µJ, at Horowitz's 0.9 pJ an addition and 4.6 pJ a "
        "multiply-accumulate (32-bit floats, 45 nm); accuracy on the same images, in %.",
        *_energy(energy),
    ]
    rows += ["", "## Commands", ""]
    trainings = [
        json.loads(f.read_text(encoding="utf-8")) for f in sorted(folder.glob("*/environment.json"))
    ]
    for content in (*trainings, *adaptive, *energy):
        where = f"{content['hardware']['device']}, {content['hardware']['host_cores']} cores"
        commit = provenance.short(content["commit"])
        rows.append(f"- `{content['command']}` (commit {commit}; {where})")
    for run in sorted(p for p in folder.iterdir() if p.is_dir()):
        for plot in ("adaptive.png", "energy.png"):
            if (run / plot).exists():
                rows += ["", f"![{run.name}, {plot[:-4]}]({run.name}/{plot})"]
    (folder / "README.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _adaptive(records: list[Any]) -> list[str]:
    """A column for each network: there are more figures than networks."""
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
        figures["seconds, fixed T"].append(f"{seconds['fixed']:.0f}")
        figures["seconds, adaptive"].append(f"{seconds['adaptive']:.0f}")
        figures["decisions unlike the whole simulation's"].append(a["differ_from_fixed_simulation"])
    networks = [a["network"] for a in records]
    return table(("", *networks), [(name, *row) for name, row in figures.items()])


def _energy(records: list[Any]) -> list[str]:
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
