"""Look inside a run's spiking network: `python -m tcl_jax inspect RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tcl_jax.cli.options import Folder, check_options
from tcl_jax.cli.processes import ALONE
from tcl_jax.cli.simulate import CODING_HELP, NEURONS_HELP, READOUT_HELP
from tcl_jax.cli.terminal import reported_at_exit
from tcl_jax.errors import InputError
from tcl_jax.report.names import shortened
from tcl_jax.report.tables import print_table
from tcl_jax.runs.delay import AutoDelay
from tcl_jax.runs.inspect import inspect_run
from tcl_jax.simulation.coding import CODINGS
from tcl_jax.simulation.neurons import NEURONS
from tcl_jax.simulation.readout import READOUTS
from tcl_jax.simulation.settings import Simulation

PROGRAM = "python -m tcl_jax inspect"


@dataclass(frozen=True)
class Inspect:
    """Spikes, membrane potentials and rates of single test images, and a page of the whole run.

    Writes traces.npz, a picture of each image, and report.html, one file that a browser opens.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run's folder, after convert.py."""
    image: str = "0,1,2"
    """Which test images, by number from 0."""
    layers: Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint="")] = None
    """Which layers, by name or a part of it, as act1,output (default: 8 of them, or all)."""
    timesteps: int = 100
    """Number of steps T."""
    snn: str = "snn"
    """Which spiking network of the run, as convert.py named it."""
    readout: Annotated[str, tyro.conf.arg(help=READOUT_HELP)] = "spikes"
    neurons: Annotated[str, tyro.conf.arg(help=NEURONS_HELP)] = "if"
    coding: Annotated[str, tyro.conf.arg(help=CODING_HELP)] = "analog"
    seed: int = 0
    """Seed of what the coding draws."""
    delay: str = "0"
    """What reaches the output in so many first steps is left out; auto estimates how many."""
    output: Folder = None
    """Where to write (default: inspect, in the run's folder, or the spiking network's if it has a
    name)."""
    data_dir: Folder = None
    """Where prepared data sets lie (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)."""
    raw_dir: Folder = None
    """Where the data set's raw files lie."""

    def numbers(self) -> list[int]:
        """Of the images."""
        words = self.image.split(",")
        if wrong := [word for word in words if not word.strip().isdecimal()]:
            raise InputError(f"takes whole numbers, as 0,1,2, got {wrong[0]!r}", "image")
        return [int(word) for word in words]

    def settings(self) -> Simulation | AutoDelay:
        """How they are simulated."""
        if not (self.delay.isdecimal() or self.delay == "auto"):
            raise InputError(f"takes a whole number or auto, got {self.delay!r}", "delay")
        neurons, coding = NEURONS.read(self.neurons), CODINGS.read(self.coding)
        delay = 0 if self.delay == "auto" else int(self.delay)
        one = Simulation(neurons, coding, READOUTS.read(self.readout), delay, self.seed)
        return AutoDelay(one) if self.delay == "auto" else one


def main(arguments: list[str]) -> int:
    with reported_at_exit(Inspect):
        o = check_options(Inspect, arguments=arguments, prog=PROGRAM)
        numbers, settings = o.numbers(), o.settings()
        with ALONE.joined(batch_size=1):
            found = inspect_run(
                o.run,
                numbers,
                o.timesteps,
                settings,
                layers=None if o.layers is None else o.layers.split(","),
                snn=o.snn,
                output=o.output,
                data_dir=o.data_dir,
                raw_dir=o.raw_dir,
            )
        _, names = shortened(found.layers, "")
        print_table(f"{len(names)} layers: {', '.join(names)}", found.table)
        print(f"open {found.page} in a browser")
    return 0
