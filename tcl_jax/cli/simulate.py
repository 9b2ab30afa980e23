"""Simulate a run's spiking network: `simulate.py RUN`, or `tcl-simulate RUN`."""

from tcl_jax.cli.terminal import ends_at_ctrl_c, reported_at_exit

with ends_at_ctrl_c():  # these take seconds
    from dataclasses import dataclass, fields
    from pathlib import Path
    from typing import Annotated, Any

    import tyro

    from tcl_jax.cli.options import Folder, Whole, check_options
    from tcl_jax.cli.processes import ALONE, Processes
    from tcl_jax.errors import InputError
    from tcl_jax.progress import bar
    from tcl_jax.report.tables import (
        print_adaptive,
        print_curve,
        print_energy,
        print_simulation_plan,
    )
    from tcl_jax.runs.adapt import adapt_run
    from tcl_jax.runs.plan import plan_run
    from tcl_jax.runs.simulate import Simulated, latencies, simulate_run
    from tcl_jax.simulation.coding import CODINGS
    from tcl_jax.simulation.energy import FLOAT32, OperationCost
    from tcl_jax.simulation.executors import EXECUTORS
    from tcl_jax.simulation.neurons import NEURONS
    from tcl_jax.simulation.readout import READOUTS
    from tcl_jax.simulation.settings import Simulation
    from tcl_jax.topology import find

EXECUTOR_HELP = (
    "In which order all is computed: step by step, or several steps of a layer at once, as many as "
    "are fastest or as said, in so many GiB of memory.  Spikes are the same but where a sum's last "
    "bits decide.  Choose from "
    f"{EXECUTORS.help()}."
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
CODING_HELP = (
    "How images are fed: as a constant current, or as spikes at regular intervals or drawn.  "
    f"Choose from {CODINGS.help()}."
)


@dataclass(frozen=True)
class Options:
    """Accuracy of a run's spiking network at every latency T, and of the trained one.

    Writes curve.csv, curve.png, summary.json, and what --energy or --adaptive says.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, after convert.py."""
    timesteps: int = 100
    """The longest latency T; the whole curve up to it comes from one pass."""
    snn: str = "snn"
    """Which spiking network of the run, as convert.py named it."""
    readout: Annotated[str, tyro.conf.arg(help=READOUT_HELP)] = "spikes"
    neurons: Annotated[str, tyro.conf.arg(help=NEURONS_HELP)] = "if"
    coding: Annotated[str, tyro.conf.arg(help=CODING_HELP)] = "analog"
    seed: int = 0
    """Seed of what the coding draws."""
    delay: int = 0
    """What reaches the output in so many first steps is left out."""
    images: Whole = None
    """Number of test images (default: all)."""
    batch_size: int = 100
    """Images at a time, on each process."""
    energy: bool = False
    """Count synaptic operations and estimate their energy: energy.json, energy.csv, energy.png."""
    cost: tyro.conf.OmitArgPrefixes[OperationCost] = FLOAT32
    """With --energy: what the two operations cost (default: 32-bit floats, Horowitz 2014)."""
    adaptive: bool = False
    """Instead, stop each image once its class is safe, and compare with all of them run to T:
    adaptive.json, adaptive.png."""
    max_loss: float = 0.1
    """With --adaptive: accuracy that may be lost against fixed T, in points."""
    calibration_images: int = 2000
    """With --adaptive: training images, the last ones, that tell when a class is safe."""
    executor: Annotated[str, tyro.conf.arg(help=EXECUTOR_HELP)] = "blocked"
    output: Folder = None
    """Where to write (default: the run's folder, or the spiking network's if it has a name)."""
    data_dir: Folder = None
    """Where prepared data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    raw_dir: Folder = None
    """Where the data set's raw files lie."""
    plan: str | None = None
    """Do not simulate, but compile for TPU chips that are not here, as v5e:16x16, and say what it
    takes on each and how long; needs pip install 'tcl_jax[plan]'."""
    processes: tyro.conf.OmitArgPrefixes[Processes] = ALONE

    def settings(self) -> Simulation:
        return Simulation(
            neurons=NEURONS.read(self.neurons),
            coding=CODINGS.read(self.coding),
            readout=READOUTS.read(self.readout),
            delay=self.delay,
            seed=self.seed,
            executor=EXECUTORS.read(self.executor),
        )


@reported_at_exit(Options)
def main() -> int:
    of_neurons = {f"--{f.name}": f"--neurons if:{f.name}=..." for f in fields(NEURONS["if"])}
    o = check_options(Options, instead=of_neurons)
    if o.adaptive and o.energy:
        raise InputError("--energy is of fixed latencies: leave --adaptive or --energy out")
    how: dict[str, Any]
    if o.plan is not None:
        if o.adaptive or o.energy or o.processes.distributed:
            raise InputError(
                "--plan compiles the curve alone: leave --adaptive, --energy and --distributed out"
            )
        there, how = find(o.plan), {"snn": o.snn, "batch_size": o.batch_size}
        with bar("compiling", total=1, unit="programs"):
            planned = plan_run(o.run, there, o.timesteps, o.settings(), **how)
        print_simulation_plan(planned)
        return 0
    how = {
        "timesteps": o.timesteps,
        "settings": o.settings(),
        "snn": o.snn,
        "output": o.output,
        "images": o.images,
        "batch_size": o.batch_size,
        "data_dir": o.data_dir,
        "raw_dir": o.raw_dir,
    }
    with o.processes.joined(o.batch_size) as cluster:
        if o.adaptive:
            counted: dict[str, Any] = {
                "max_loss": o.max_loss,
                "calibration_images": o.calibration_images,
            }
            adapted = adapt_run(o.run, cluster=cluster, **counted, **how)
            if cluster.writes:
                print_adaptive(adapted)
            return 0
        cost = o.cost if o.energy else None
        simulated = simulate_run(o.run, cost=cost, cluster=cluster, **how)
        if cluster.writes:
            _print(o, simulated)
    return 0


def _print(o: Options, simulated: Simulated) -> None:
    curve, top5, summary, energy = simulated
    weights = "" if summary["weights"] == "float32" else f"weights of {summary['weights']}, "
    title = (
        f"{summary['network']} on {summary['images']} test images of {summary['data']}, {weights}"
        f"{summary['norm']} norm, {summary['readout']} readout"
    )
    print_curve(
        list(curve),
        summary["ann_accuracy_in"],
        latencies(o.timesteps),
        title,
        top5=None if top5 is None else list(top5),
        ann_top5=summary.get("ann_top5_accuracy"),
    )
    if energy is not None:
        print_energy(energy, list(curve), summary["ann_accuracy"])
