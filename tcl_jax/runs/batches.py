"""Images of a run's data set, as its network takes them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, UInt8

from tcl_jax import data
from tcl_jax.cluster import Cluster, here
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
    cluster: Cluster | None = None,
) -> Iterator[dict[str, Any]]:
    """One pass over a split in batches of one size, laid over devices.

    Args:
        dataset: has the splits.
        standardize: of images.
        split: which.
        batch_size: images at a time, over all devices of the cluster.
        first: number of the first image.
        limit: the most images; None takes all.
        cluster: the devices; the first of this process alone when None.

    Yields:
        ``image``, standardised, and ``label`` and ``mask`` as `data.eval_batches` has them.
    """
    cluster = cluster or here(1)
    if limit == 0:  # a process that has no part of so few
        return
    which: dict[str, Any] = {"first": first, "limit": limit, "shard": cluster.shard}
    source = getattr(dataset, split)
    with closing(data.eval_batches(source, batch_size=batch_size, **which)) as batches:
        for batch in batches:
            laid = cluster.put(dict(batch))
            yield laid | {"image": standardize(laid["image"])}


def part(images: int, batch_size: int, cluster: Cluster) -> tuple[int, int]:
    """Of so many images, those that are for this process: the number of the first, and how many.

    Whole batches, so that each image is computed beside the same others, and what is found of it is
    the same bit for bit, however many processes there are.

    >>> from tcl_jax.cluster import Cluster, here
    >>> [part(950, 100, Cluster(here().mesh, process, 3)) for process in range(3)]
    [(0, 300), (300, 300), (600, 350)]
    """
    batches = -(-images // batch_size)
    first, end = (
        min(batches * process // cluster.processes * batch_size, images)
        for process in (cluster.process, cluster.process + 1)
    )
    return first, end - first


def check_counts(**counts: int | None) -> None:
    """Raises InputError where a number is not above 0; None, which is all, is."""
    for name, value in counts.items():
        if value is not None and value < 1:
            raise InputError(f"must be at least 1, got {value}", name)


def images_of(batches: Iterator[dict[str, Any]]) -> Iterator[Float[Array, "b h w c"]]:
    """The images alone, without what fills the last batch up."""
    for batch in batches:
        yield batch["image"][np.asarray(batch["mask"])]
