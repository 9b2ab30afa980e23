"""Train, convert and simulate all that results/NAME shows: `python -m results.reproduce NAME`.

Every run is made by the project's own commands and goes on where it stopped, so this can be
interrupted and started again.  What was made with other settings than the commands have today is
made again.  What is small goes into results/NAME: configuration, environment, metrics, history of
λ, curves, plots and a report; checkpoints stay in runs/NAME.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from results.experiment import Curve, write_report
from results.records import CONVERSION, ROOT, Command, about, unconverted, unsimulated, untrained
from tcl_jax.cli.terminal import reported_at_exit
from tcl_jax.errors import InputError
from tcl_jax.runs.converted import LAYER_REPORT
from tcl_jax.training import CONFIG
from tcl_jax.training.log import METRICS


@dataclass(frozen=True)
class Experiment:
    """One network, with TCL and without, and the norms under which each is converted.

    Attributes:
        preset: recipe of train.py.
        timesteps: the longest latency T of the paper's method.
        baseline_timesteps: that of the others.
        images: how many test images, from the first.
        options: of train.py, beside the recipe.
    """

    preset: str
    timesteps: int
    baseline_timesteps: int
    images: int
    options: tuple[str, ...] = ()

    @property
    def network(self) -> str:
        return self.preset.split("-", 1)[1]


EXPERIMENTS = {
    "fashion_mnist": (
        Experiment("fashion_mnist-cnet", timesteps=100, baseline_timesteps=50, images=10_000),
        Experiment("fashion_mnist-resnet20", timesteps=150, baseline_timesteps=50, images=10_000),
        Experiment("fashion_mnist-vgg16", 150, 50, 10_000, ("--epochs", "15")),
        Experiment("fashion_mnist-mobilenet", 150, 50, 10_000, ("--epochs", "15")),
    ),
    "digits": (Experiment("digits-cnet", timesteps=100, baseline_timesteps=100, images=359),),
}
# Label, options of train.py, norm: the paper's method and the two that it is compared with.
METHODS = (
    ("TCL", (), "tcl"),
    ("max norm", ("--model.no-tcl",), "max"),
    ("99.9 % norm", ("--model.no-tcl",), "percentile:99.9"),
)


@dataclass(frozen=True)
class Row:
    """A row of a table: a network that three commands train, convert and simulate.

    Attributes:
        label: name of the method.
        run: folder of the trained network, within runs/NAME and results/NAME.
        snn: folder of the spiking network within it.
        train, convert, simulate: the commands.
    """

    label: str
    run: str
    snn: str
    train: Command
    convert: Command
    simulate: Command

    def lacks(self, run: Path) -> Iterator[tuple[Command, str]]:
        """What a folder of the run lacks, and the command that makes it: one after the other."""
        if reason := untrained(self.train, run):
            yield self.train, reason
        if reason := unconverted(self.convert, run, self.snn):
            yield self.convert, reason
        if reason := unsimulated(self.simulate, run / self.snn / "summary.json", run / self.snn):
            yield self.simulate, reason


def rows(name: str, experiment: Experiment) -> Iterator[Row]:
    """The rows of a network's table."""
    for label, options, norm in METHODS:
        run = f"{experiment.network}-{'relu' if options else 'tcl'}"
        snn = "snn-" + norm.replace("percentile:", "p")
        where = f"runs/{name}/{run}"
        timesteps = experiment.baseline_timesteps if options else experiment.timesteps
        size = ("--timesteps", str(timesteps), "--images", str(experiment.images))
        yield Row(
            label,
            run,
            snn,
            Command(
                "train.py", (experiment.preset, *experiment.options, *options, "--workdir", where)
            ),
            Command("convert.py", (where, "--norm", norm, "--snn", snn)),
            Command("simulate.py", (where, "--snn", snn, *size)),
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=EXPERIMENTS, help="which results to make")
    parser.add_argument(
        "--network", help="only this network, as in cnet; the report then covers what is there"
    )
    parser.add_argument("--report-only", action="store_true", help="rewrite tables and plots")
    options = parser.parse_args()
    runs, results = ROOT / "runs" / options.name, ROOT / "results" / options.name
    known = [e.network for e in EXPERIMENTS[options.name]]
    if options.network not in (None, *known):
        raise InputError(f"unknown network {options.network!r}: choose from {', '.join(known)}")
    if not options.report_only:
        wanted = [
            row
            for experiment in EXPERIMENTS[options.name]
            if options.network in (None, experiment.network)
            for row in rows(options.name, experiment)
        ]
        for row in wanted:
            make(row, runs / row.run)
        for row in wanted:  # not before: all commands shall run on the commit without changes
            keep(runs / row.run, row.snn, results / row.run)
    report(options.name, results)
    return 0


def make(row: Row, run: Path) -> None:
    """Run those commands of a row whose records the run's folder lacks.

    Raises:
        InputError: they did not make them.
    """
    for command, reason in row.lacks(run):
        print(f"{run.name}, {row.label}: {reason}", flush=True)
        command.run(*["--resume"] * (command is row.train and (run / CONFIG).exists()))
    for _, reason in row.lacks(run):
        raise InputError(f"{run} is still {reason}: move it away, and run this again")


def keep(run: Path, snn: str, kept: Path) -> None:
    """Copy what is small of a run, and of a spiking network in it, to where records are kept."""
    known = kept / METRICS
    if not known.exists() or known.read_bytes() != (run / METRICS).read_bytes():
        # Of another training, and so is all that was made from it.
        shutil.rmtree(kept, ignore_errors=True)
    (kept / snn).mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, "environment.json", METRICS):
        shutil.copy(run / file, kept / file)
    for file in ("curve.csv", "curve.png", "summary.json", *LAYER_REPORT):
        if (run / snn / file).exists():
            shutil.copy(run / snn / file, kept / snn / file)
    said = json.dumps(about(run / snn), indent=2) + "\n"
    (kept / snn / CONVERSION).write_text(said, encoding="utf-8")


def report(name: str, results: Path) -> None:
    """Write tables and plots of those records that today's commands would write.

    Raises:
        InputError: there are none.
    """
    groups: dict[str, list[Curve]] = {}
    left_out = []
    for experiment in EXPERIMENTS[name]:
        for row in rows(name, experiment):
            kept = results / row.run
            if lacking := next(row.lacks(kept), None):
                left_out.append(f"{experiment.network}, {row.label}: {lacking[1]}")
            else:
                curves = groups.setdefault(experiment.network, [])
                curves.append(Curve.read(row.label, kept, row.snn))
    if not groups:
        raise InputError(
            f"there is nothing in {results} to report on ({'; '.join(left_out)}): run without "
            "--report-only"
        )
    write_report(name, groups, left_out, results, ROOT / "README.md")


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
