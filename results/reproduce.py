"""Train, convert and simulate all that results/NAME shows: `python results/reproduce.py NAME`.

Every run is made by the project's own commands and goes on where it stopped, so this can be
interrupted and started again.  What is small goes into results/NAME: configuration, environment,
metrics, history of λ, curves, plots and a report; checkpoints stay in runs/NAME.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tcl_jax.errors import InputError  # noqa: E402
from tcl_jax.report.experiment import Curve, write_report  # noqa: E402
from tcl_jax.run import LAYER_REPORT  # noqa: E402
from tcl_jax.terminal import reported_at_exit  # noqa: E402
from tcl_jax.training.log import METRICS, read  # noqa: E402


@dataclass(frozen=True)
class Experiment:
    """One network, with TCL and without, and the norms under which each is converted.

    Attributes:
        preset: recipe of train.py.
        epochs: how long both networks are trained.
        timesteps: the longest latency T of the paper's method.
        baseline_timesteps: that of the others.
        images: how many test images, from the first.
    """

    preset: str
    epochs: int
    timesteps: int
    baseline_timesteps: int
    images: int

    @property
    def network(self) -> str:
        return self.preset.split("-", 1)[1]


EXPERIMENTS = {
    "fashion_mnist": (
        Experiment("fashion_mnist-cnet", 20, timesteps=100, baseline_timesteps=50, images=10_000),
        Experiment(
            "fashion_mnist-resnet20", 15, timesteps=150, baseline_timesteps=50, images=10_000
        ),
    ),
    "digits": (Experiment("digits-cnet", 40, timesteps=100, baseline_timesteps=100, images=359),),
}
# Label, options of train.py, norm: the paper's method and the two that it is compared with.
METHODS = (
    ("TCL", (), "tcl"),
    ("max norm", ("--model.no-tcl",), "max"),
    ("99.9 % norm", ("--model.no-tcl",), "percentile:99.9"),
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
    for experiment in EXPERIMENTS[options.name]:
        if options.network in (None, experiment.network) and not options.report_only:
            for label, train_options, norm in METHODS:
                _run(experiment, runs, results, label, train_options, norm)
    _report(options.name, results)
    return 0


def _folders(experiment: Experiment, train_options: tuple[str, ...], norm: str) -> tuple[str, str]:
    """Names of a run and of a spiking network within it."""
    kind = "relu" if train_options else "tcl"
    return f"{experiment.network}-{kind}", "snn-" + norm.replace("percentile:", "p").replace(
        ":", ""
    ).replace("/", "-")


def _run(
    experiment: Experiment,
    runs: Path,
    results: Path,
    label: str,
    train_options: tuple[str, ...],
    norm: str,
) -> None:
    name, snn = _folders(experiment, train_options, norm)
    run, kept = runs / name, results / name
    where = run.relative_to(ROOT)
    train = ["train.py", experiment.preset, "--epochs", str(experiment.epochs), *train_options]
    if not _trained(run, experiment.epochs):
        resume = ["--resume"] if (run / "config.json").exists() else []
        _command(*train, "--workdir", str(where), *resume)
    if not (run / snn / "summary.json").exists():
        if not (run / snn / "graph.json").exists():
            _command("convert.py", str(where), "--norm", norm, "--snn", snn)
        t = experiment.baseline_timesteps if train_options else experiment.timesteps
        size = ["--timesteps", str(t), "--images", str(experiment.images)]
        _command("simulate.py", str(where), "--snn", snn, *size)
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "environment.json", METRICS):
        shutil.copy(run / file, kept / file)
    if (run / snn).exists():
        (kept / snn).mkdir(exist_ok=True)
        for file in ("curve.csv", "curve.png", "summary.json", *LAYER_REPORT):
            if (run / snn / file).exists():
                shutil.copy(run / snn / file, kept / snn / file)
        about = json.loads((run / snn / "graph.json").read_text(encoding="utf-8"))["about"]
        (kept / snn / "conversion.json").write_text(
            json.dumps(about, indent=2) + "\n", encoding="utf-8"
        )


def _trained(run: Path, epochs: int) -> bool:
    if not (run / METRICS).exists():
        return False
    return any(r["kind"] == "epoch" and r["epoch"] == epochs for r in read(run / METRICS))


def _command(*arguments: str) -> None:
    print("$ python", shlex.join(arguments), flush=True)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def _report(name: str, results: Path) -> None:
    groups = {}
    for experiment in EXPERIMENTS[name]:
        curves = []
        for label, train_options, norm in METHODS:
            run, snn = _folders(experiment, train_options, norm)
            if (results / run / snn / "summary.json").exists():
                curves.append(Curve.read(label, results / run, snn))
        if curves:
            groups[experiment.network] = curves
    if not groups:
        raise InputError(f"there is nothing in {results} to report on: run without --report-only")
    write_report(name, groups, results, ROOT / "README.md")


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
