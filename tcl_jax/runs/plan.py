"""What simulating a run's spiking network comes to on a slice of TPU chips."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tcl_jax import data, programs
from tcl_jax.errors import InputError
from tcl_jax.roofline import costs
from tcl_jax.runs.converted import load_converted
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.executors import Blocked
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
            fit the memory: then one that does is named.
    """
    check_numbers(timesteps, settings.delay, batch_size=batch_size)
    artifact = load_converted(folder, snn)
    info = data.described(**artifact.about["data"])
    if isinstance(settings.executor, Blocked):
        settings = replace(settings, executor=replace(settings.executor, platform="tpu"))
    host = topology.cluster.own
    host.check_batch_size(batch_size)

    graph = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host.whole), artifact.graph
    )

    def of(batch_size: int) -> jax.stages.Lowered:
        x, labels, mask = (
            jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=host.split)
            for shape, dtype in ((info.image_shape, np.float32), ((), np.int32), ((), np.bool_))
        )
        return lowered(graph, x, labels, mask, timesteps, settings)

    try:
        program = programs.compiled(of(batch_size))
    except programs.NoRoom as full:
        weights = sum(x.nbytes for x in jax.tree.leaves(artifact.graph))
        fitting = programs.fitting(of, batch_size, host.mesh.size, weights, full)
        advice = f"{fitting} fit" if fitting else "choose chips with more memory"
        raise InputError(
            f"batch_size={batch_size} needs {full} of {topology.name}: {advice}"
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
