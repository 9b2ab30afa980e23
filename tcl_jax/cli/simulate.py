"""Simulate a run's spiking network: `simulate.py RUN`, or `tcl-simulate RUN`."""

from tcl_jax.cli.terminal import ends_at_ctrl_c, reported_at_exit

with ends_at_ctrl_c():  # these take seconds
    import itertools
    from dataclasses import dataclass, fields
    from pathlib import Path
    from typing import Annotated, Any

    import tyro

    from tcl_jax.calibration import NORMS, NormMethod
    from tcl_jax.cli.options import Folder, Whole, check_options, program
    from tcl_jax.cli.processes import ALONE, Processes
    from tcl_jax.cluster import Cluster, everywhere
    from tcl_jax.errors import InputError
    from tcl_jax.progress import bar
    from tcl_jax.report.tables import (
        print_adaptive,
        print_curve,
        print_energy,
        print_simulation_plan,
        print_sweep,
    )
    from tcl_jax.runs.adapt import adapt_run
    from tcl_jax.runs.converted import spiking_networks
    from tcl_jax.runs.delay import AutoDelay
    from tcl_jax.runs.plan import plan_run
    from tcl_jax.runs.simulate import Simulated, latencies, simulate_run
    from tcl_jax.runs.sweep import POINTS, Network, Sweep, of_norm, sweep_runs
    from tcl_jax.simulation.coding import CODINGS
    from tcl_jax.simulation.executors import EXECUTORS
    from tcl_jax.simulation.margins import MARGINS
    from tcl_jax.simulation.neurons import NEURONS
    from tcl_jax.simulation.operations import FLOAT32, OperationCost
    from tcl_jax.simulation.readout import READOUTS
    from tcl_jax.simulation.settings import Simulation
    from tcl_jax.topology import find

EXECUTOR_HELP = (
    "In which order all is computed: step by step, or several steps of a layer at once, as many as "
    "are fastest or as said, in so many GiB of memory.  Spikes are the same but where a sum's last "
    "bits decide.  Choose from "
    f"{EXECUTORS.help()}."
)
NORM_HELP = (
    "Which by its norm, or by each of several; where there is none of a norm, the run is converted."
    f"  Choose from {NORMS.help()}."
)
READOUT_HELP = (
    "How a class is read: by output spikes, as the paper does, or by the output's accumulated "
    f"current.  Choose from {READOUTS.help()}."
)
NEURONS_HELP = (
    "What hidden neurons are, as in if:v0=0.5: v0 and floor in thresholds, leak a part of the "
    "potential a step, reset by subtract or to zero, refractory in steps.  Choose from "
    f"{NEURONS.help()}."
)
MARGIN_HELP = (
    "With --adaptive: what must be so much more of one class than of any other.  Choose from "
    f"{MARGINS.help()}."
)
CODING_HELP = (
    "How images are fed: as a constant current, or as spikes at regular intervals or drawn.  "
    f"Choose from {CODINGS.help()}."
)


@dataclass(frozen=True)
class Options:
    """Accuracy of a run's spiking network at every latency T, and of the trained one.

    Writes curve.csv, curve.png, summary.json, and what --energy or --adaptive says.

    Several runs, or lists with commas, as --readout spikes,membrane, are a sweep:

    one table of all, sweep.csv, sweep.png, and sweep.json, from which it goes on.
    """

    run: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN", help_behavior_hint=""),
    ] = ()
    """The run's folder, after convert.py; or several, side by side."""
    timesteps: int = 100
    """The longest latency T; the whole curve up to it comes from one pass."""
    snn: str = "snn"
    """Which spiking network of the run, as convert.py named it."""
    norm: Annotated[
        str | None, tyro.conf.arg(metavar="STR", help=NORM_HELP, help_behavior_hint="")
    ] = None
    readout: Annotated[str, tyro.conf.arg(help=READOUT_HELP)] = "spikes"
    neurons: Annotated[str, tyro.conf.arg(help=NEURONS_HELP)] = "if"
    coding: Annotated[str, tyro.conf.arg(help=CODING_HELP)] = "analog"
    seed: int = 0
    """Seed of what the coding draws."""
    seeds: int = 1
    """How many seeds, from that one, a coding that draws is simulated with."""
    delay: str = "0"
    """What reaches the output in so many first steps is left out; auto estimates from which step on
    the output carries information."""
    images: Whole = None
    """Number of test images (default: all)."""
    batch_size: int = 100
    """Images at a time, on each process."""
    energy: bool = False
    """Count synaptic operations and estimate their energy: energy.json, energy.csv, energy.png."""
    cost: tyro.conf.OmitArgPrefixes[OperationCost] = FLOAT32
    """With --energy: what the two operations cost (default: 32-bit floats, Horowitz 2014)."""
    error: bool = False
    """Beside accuracy, the error of the output's values: how far from the analog network's."""
    adaptive: bool = False
    """Instead, stop each image once its class is safe, and compare with all of them run to T:
    adaptive.json, adaptive.png."""
    margin: Annotated[str, tyro.conf.arg(help=MARGIN_HELP)] = "charge"
    max_loss: float = 0.1
    """With --adaptive: accuracy that may be lost against fixed T, in points."""
    calibration_images: int = 2000
    """With --adaptive: training images, the last ones, that tell when a class is safe."""
    executor: Annotated[str, tyro.conf.arg(help=EXECUTOR_HELP)] = "blocked"
    output: Folder = None
    """Where to write (default: the run's folder, or the spiking network's if it has a name; of
    several runs there is none)."""
    data_dir: Folder = None
    """Where prepared data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    raw_dir: Folder = None
    """Where the data set's raw files lie."""
    plan: str | None = None
    """Do not simulate, but compile for TPU chips that are not here, as v5e:16x16, and say what it
    takes on each and how long; needs pip install 'tcl_jax[plan]'."""
    processes: tyro.conf.OmitArgPrefixes[Processes] = ALONE

    def settings(self) -> list[Simulation | AutoDelay]:
        """All ways to simulate: the product of the lists."""
        codings = CODINGS.read_all(self.coding)
        if self.seeds < 1 or (self.seeds > 1 and not any(c.random for c in codings)):
            drawn = " or ".join(name for name, coding in CODINGS.items() if coding.random)
            raise InputError(
                f"is {self.seeds}: give one for a coding that draws nothing, and one or more for "
                f"coding={drawn}",
                "seeds",
            )
        executor = EXECUTORS.read(self.executor)
        neuron_models, readouts = NEURONS.read_all(self.neurons), READOUTS.read_all(self.readout)
        found: list[Simulation | AutoDelay] = []
        for neurons, coding, readout, delay in itertools.product(
            neuron_models, codings, readouts, _delays(self.delay)
        ):
            for seed in range(self.seed, self.seed + (self.seeds if coding.random else 1)):
                one = Simulation(neurons, coding, readout, delay or 0, seed, executor)
                found.append(AutoDelay(one) if delay is None else one)
        return found

    def named(self) -> list[tuple[Path, str | NormMethod]]:
        """Spiking networks by what is said of them: their names, or their norms."""
        if self.norm is not None and self.snn != Options.snn:
            raise InputError("--norm finds spiking networks, which --snn names: leave one out")
        names = self.snn.split(",") if self.norm is None else NORMS.read_all(self.norm)
        return list(itertools.product(dict.fromkeys(self.run), dict.fromkeys(names)))

    def networks(self, cluster: Cluster) -> list[Network]:
        """These networks; where there is none of a norm it is converted."""
        how: dict[str, Any] = {"data_dir": self.data_dir, "raw_dir": self.raw_dir}
        how |= {"batch_size": self.batch_size, "cluster": cluster}
        found = []
        for run, which in self.named():
            known = spiking_networks(run)
            found.append(
                Network(run, which) if isinstance(which, str) else of_norm(run, which, **how)
            )
            if (snn := found[-1].snn) not in known and self.norm is not None and cluster.writes:
                print(f"converted {run} by the norm {which}: {run / snn}")
        return found

    def folder(self) -> Path:
        """Where a sweep is written."""
        if self.output is not None:
            return self.output
        first, *others = dict.fromkeys(self.run)
        if others:
            raise InputError("say where a sweep of several runs is written, as in --output sweep")
        return first


def _delays(text: str) -> list[int | None]:
    """A list of delays; None is one that is to be estimated."""
    words = list(dict.fromkeys(text.split(",")))
    if wrong := [word for word in words if word != "auto" and not word.isdecimal()]:
        raise InputError(f"takes a whole number or auto, or several, got {wrong[0]!r}", "delay")
    return [None if word == "auto" else int(word) for word in words]


@reported_at_exit(Options)
def main() -> int:
    of_neurons = {f"--{f.name}": f"--neurons if:{f.name}=..." for f in fields(NEURONS["if"])}
    o = check_options(Options, instead=of_neurons)
    if not o.run:
        raise InputError(
            f"RUN is missing: the run's folder, after convert.py (see {program()} --help)"
        )
    if o.error + o.adaptive + o.energy > 1:
        raise InputError(
            "--energy and --error are of fixed latencies and a pass each: give one of --energy, "
            "--error and --adaptive"
        )
    settings, margin = o.settings(), MARGINS.read(o.margin)
    several = len(settings) > 1 or len(o.named()) > 1
    if several and (o.adaptive or o.energy or o.error or o.plan is not None):
        raise InputError(
            "--adaptive, --energy, --error and --plan are of one spiking network that is simulated "
            "in one way: give one run, and no lists"
        )
    if o.plan is not None:
        if o.adaptive or o.energy or o.error or o.processes.distributed:
            raise InputError(
                "--plan compiles the curve alone: leave --adaptive, --energy, --error and "
                "--distributed out"
            )
        there = find(o.plan)
        [network], [one] = o.networks(everywhere()), settings
        planned_of = one.settings if isinstance(one, AutoDelay) else one  # one program for any
        with bar("compiling", total=1, unit="programs"):
            planned = plan_run(
                network.run,
                there,
                o.timesteps,
                planned_of,
                snn=network.snn,
                batch_size=o.batch_size,
            )
        print_simulation_plan(planned)
        return 0
    how: dict[str, Any] = {
        "images": o.images,
        "batch_size": o.batch_size,
        "data_dir": o.data_dir,
        "raw_dir": o.raw_dir,
    }
    if several:
        output = o.folder()
    with o.processes.joined(o.batch_size) as cluster:
        networks = o.networks(cluster)
        how["cluster"] = cluster
        if several:
            swept = sweep_runs(networks, o.timesteps, settings, output=output, **how)
            if cluster.writes:
                _print_sweep(o, swept, output)
            return 0
        [(run, snn)], [one] = networks, settings
        how |= {"snn": snn, "output": o.output}
        if o.adaptive:
            counted: dict[str, Any] = {
                "max_loss": o.max_loss,
                "calibration_images": o.calibration_images,
            }
            adapted = adapt_run(run, o.timesteps, one, margin, **counted, **how)
            if cluster.writes:
                _print_delay(adapted)
                print_adaptive(adapted)
            return 0
        cost = o.cost if o.energy else None
        simulated = simulate_run(run, o.timesteps, one, cost=cost, error=o.error, **how)
        if cluster.writes:
            _print(o, simulated)
    return 0


def _print_delay(record: dict[str, Any]) -> None:
    if record.get("delay_estimated"):
        delay = record["delay"]
        print(f"from step {delay + 1} on the output carries information: delay {delay}")


def _print_sweep(o: Options, swept: Sweep, output: Path) -> None:
    print_sweep(swept.common, swept.rows, latencies(o.timesteps))
    every = sum(row.seeds for row in swept.rows)
    if swept.known:
        print(f"{swept.known} of {every} simulations were there already, in {output / POINTS}")
    for names in swept.alike:
        print(f"{', '.join(names)}: one and the same network, norm-factors and all")


def _print(o: Options, simulated: Simulated) -> None:
    curve, top5, summary, energy, errors = simulated
    weights = "" if summary["weights"] == "float32" else f"weights of {summary['weights']}, "
    title = (
        f"{summary['network']} on {summary['images']} test images of {summary['data']}, {weights}"
        f"{summary['norm']} norm, {summary['readout']} readout"
    )
    _print_delay(summary)
    print_curve(
        list(curve),
        summary["ann_accuracy_in"],
        latencies(o.timesteps),
        title,
        top5=None if top5 is None else list(top5),
        ann_top5=summary.get("ann_top5_accuracy"),
        error=None if errors is None else list(errors.rms / errors.scale),
    )
    if energy is not None:
        print_energy(energy, list(curve), summary["ann_accuracy"])
