"""What simulating a run's spiking network comes to on a slice of TPU chips."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcl_jax import data, programs
from tcl_jax.errors import InputError
from tcl_jax.roofline import costs
from tcl_jax.runs.converted import load_converted
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.latency import lowered
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.topology import Topology


def plan_run(
    folder: Path,
    topology: Topology,
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    snn: str = "snn",
    batch_size: int = 100,
) -> dict[str, Any]:
    """Compile the simulation of a batch for a slice, as `simulate_run` would run it there.

    Args:
        folder: the run's folder; of its images only what is published is taken.
        topology: the slice.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        snn: name of the spiking network within the run's folder.
        batch_size: images at a time, over the chips of one host.

    Returns:
        `tcl_jax.roofline.costs`, and how fast that is.

    Raises:
        InputError: a number is out of range, there is no such spiking network, or a batch does not
            fit the memory.
    """
    check_numbers(timesteps, settings.delay, batch_size=batch_size)
    artifact = load_converted(folder, snn)
    info = data.described(**artifact.about["data"])
    host = topology.cluster.own
    host.check_batch_size(batch_size)

    def rows(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=host.split)

    graph = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host.whole), artifact.graph
    )
    arrays = rows(np.float32, *info.image_shape), rows(np.int32), rows(np.bool_)
    try:
        program = programs.compiled(lowered(graph, *arrays, timesteps, settings))
    except programs.NoRoom as full:
        raise InputError(
            f"batch_size={batch_size} needs {full.used / 2**30:.1f} of "
            f"{full.limit / 2**30:.1f} GiB on each chip of {topology.name}: choose fewer"
        ) from None
    found = costs(program, topology)

    def at(seconds: float) -> dict[str, float]:
        images = batch_size * topology.cluster.processes / seconds
        return {"images_per_second": images, "seconds": info.num_test / images}

    seconds = found["seconds"]
    return {
        "network": artifact.about["network"],
        "timesteps": timesteps,
        "batch_size": batch_size,
        "hosts": topology.cluster.processes,
        "test_images": info.num_test,
        **found,
        "at_bound": at(seconds["bound"]),
        "at_expected": at(seconds["expected"]) if seconds["expected"] else None,
    }
