"""Data parallelism: batches split over all devices, everything else on each of them."""

from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tcl_jax.errors import InputError


def data_mesh() -> Mesh:
    """All devices in one row, the axis ``data``."""
    # Flax convolutions want Auto axes, where make_mesh defaults to Explicit ones.
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


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
