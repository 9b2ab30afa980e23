"""Images of a run's data set, as its network takes them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from tcl_jax import cluster, data
from tcl_jax.errors import InputError

Split = Literal["train", "test"]
Standardize = Callable[[UInt8[Array, "b h w c"]], Float[Array, "b h w c"]]


def standardised(
    dataset: data.Dataset,
    standardize: Standardize,
    split: Split,
    batch_size: int,
    *,
    first: int = 0,
    limit: int | None = None,
    mesh: Mesh | None = None,
) -> Iterator[dict[str, Any]]:
    """One pass over a split in batches of one size, laid over devices.

    Args:
        dataset: has the splits.
        standardize: of images.
        split: which.
        batch_size: images at a time, over all devices.
        first: number of the first image.
        limit: the most images; None takes all.
        mesh: the devices; the first alone when None.

    Yields:
        ``image``, standardised, and ``label`` and ``mask`` as `data.eval_batches` has them.
    """
    mesh = mesh or cluster.data_mesh(1)
    source = getattr(dataset, split)
    with closing(
        data.eval_batches(source, batch_size=batch_size, first=first, limit=limit)
    ) as batches:
        for batch in batches:
            sharded = cluster.shard_batch(dict(batch), mesh)
            yield sharded | {"image": standardize(sharded["image"])}


def check_counts(**counts: int | None) -> None:
    """Raises InputError where a number is not above 0; None, which is all, is."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"must be at least 1, got {value}", name)


def images_of(batches: Iterator[dict[str, Any]]) -> Iterator[Float[Array, "b h w c"]]:
    """The images alone, without what fills the last batch up."""
    for batch in batches:
        yield batch["image"][np.asarray(batch["mask"])]
