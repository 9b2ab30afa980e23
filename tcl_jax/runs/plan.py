"""What simulating a spiking network comes to on a slice of TPU chips, and a run's in particular."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from tcl_jax import data, programs
from tcl_jax.graph import Graph
from tcl_jax.roofline import costs
from tcl_jax.runs.converted import load_converted, tops
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.executors import Blocked
from tcl_jax.simulation.latency import lowered
from tcl_jax.simulation.lowering import lower
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
        What `plan_simulation` does, of all test images.

    Raises:
        InputError: as `plan_simulation`, or there is no such spiking network.
    """
    check_numbers(timesteps, settings, batch_size=batch_size)
    artifact = load_converted(folder, snn)
    info = data.described(**artifact.about["data"])
    found = plan_simulation(
        lower(artifact.graph, "tpu", settings.neurons),
        topology,
        timesteps,
        settings,
        shape=info.image_shape,
        batch_size=batch_size,
        top=tops(info.num_classes),
    )
    for of in ("at_bound", "at_expected"):
        if found[of] is not None:
            found[of]["seconds"] = info.num_test / found[of]["images_per_second"]
    return {"network": artifact.about["network"], "test_images": info.num_test, **found}


def plan_simulation(
    graph: Graph,
    topology: Topology,
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    shape: tuple[int, ...],
    batch_size: int = 100,
    top: int | tuple[int, ...] = 1,
) -> dict[str, Any]:
    """Compile what gives a batch's accuracy at every latency, for a slice that is not here.

    Args:
        graph: the network, as `lower` has it for a TPU.
        topology: the slice.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        shape: of an image.
        batch_size: images at a time, over the chips of one host.
        top: as `tcl_jax.simulation.latency_curve` takes it.

    Returns:
        `tcl_jax.roofline.costs`, and how fast that is.

    Raises:
        InputError: a number is out of range, or a batch does not fit the memory: then one that does
            is named.
    """
    check_numbers(timesteps, settings, batch_size=batch_size)
    if isinstance(settings.executor, Blocked):
        settings = replace(settings, executor=replace(settings.executor, platform="tpu"))
    host = topology.cluster.own
    host.check_batch_size(batch_size)
    there = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host.whole), graph
    )

    program = programs.of_batch(
        lambda size: lowered(there, shape, size, timesteps, settings, top=top, sharding=host.split),
        batch_size,
        multiple=host.mesh.size,
        fixed=sum(x.nbytes for x in jax.tree.leaves(graph)),
        where=topology.name,
        otherwise="choose chips with more memory",
    )
    found = costs(program, topology)

    def at(seconds: float) -> dict[str, float]:
        return {"images_per_second": batch_size * topology.cluster.processes / seconds}

    seconds = found["seconds"]
    return {
        "timesteps": timesteps,
        "batch_size": batch_size,
        "hosts": topology.cluster.processes,
        **found,
        "at_bound": at(seconds["bound"]),
        "at_expected": at(seconds["expected"]) if seconds["expected"] else None,
    }
