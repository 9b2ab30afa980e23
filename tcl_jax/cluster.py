"""Data parallelism: batches split over all devices, everything else on each of them."""

import os
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tcl_jax.errors import InputError

# Each holds a copy of the parameters.
_MOST_CPU_DEVICES = 16


def cores_as_devices(batch_size: int) -> None:
    """On a CPU, make a device of every core, as many as divide the batch; call before all else.

    XLA runs a convolution of few channels on one thread of its device, however many cores there
    are.  Whoever sets the number of CPU devices in the environment decides.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in flags:
        return
    cores = min(len(os.sched_getaffinity(0)), _MOST_CPU_DEVICES)
    devices = max(n for n in range(1, cores + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)


def data_mesh(devices: int | None = None) -> Mesh:
    """All devices in one row, or so many of them, the axis ``data``."""
    row = jax.devices()[:devices]
    # Flax convolutions want Auto axes, where make_mesh defaults to Explicit ones.
    return jax.make_mesh((len(row),), ("data",), axis_types=(AxisType.Auto,), devices=row)


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError where a batch cannot be split evenly."""
    if batch_size % mesh.size:
        raise InputError(
            f"a batch of {batch_size} cannot be split over {mesh.size} devices: "
            f"choose a multiple of {mesh.size}"
        )


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's part of a batch, laid over its devices."""
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
