"""Batches: which examples, in which order, cut and mirrored how, for which process.

Everything random is a function of the seed and of a position in the stream, never of hidden
state.  So a run restarts exactly from a step, and any number of processes sees the same batch.
"""

from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any, Literal, TypedDict

import grain
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from tcl_jax.data.augment import crop_and_flip, draw_crops
from tcl_jax.data.dataset import ArraySource, Dataset, Source
from tcl_jax.errors import InputError

Augment = Literal["none", "crop_flip"]

# Purposes of random streams, so that two of them never share a seed.
_ORDER, _CROPS = 0, 1
_ENDLESS = 2**62
_READ_AHEAD = 4


class TrainBatch(TypedDict):
    """One process's part of a training batch."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]


class EvalBatch(TypedDict):
    """One process's part of an evaluation batch; `mask` is false on padding."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]
    mask: Bool[np.ndarray, " b"]


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Full batches in one pass over the training split.

    Args:
        dataset: The data set.
        batch_size: Global batch size.

    Returns:
        The number of steps; the remainder of each epoch's order is dropped.

    Raises:
        InputError: The batch is larger than the split, or not positive.
    """
    if not 0 < batch_size <= dataset.info.num_train:
        raise InputError(
            f"A batch size of {batch_size} does not fit {dataset.info.name}: it must lie between "
            f"1 and the number of training examples, {dataset.info.num_train}."
        )
    return dataset.info.num_train // batch_size


@lru_cache(maxsize=2)
def epoch_order(num_examples: int, seed: int, epoch: int) -> Int32[np.ndarray, " n"]:
    """The order in which an epoch visits the examples.

    Args:
        num_examples: Size of the split.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.

    Returns:
        A permutation of 0 ... num_examples - 1, the same for the same arguments.
    """
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(num_examples)
    order.flags.writeable = False
    return order.astype(np.int32)


def train_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    augment: Augment = "none",
    shard: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Generator[TrainBatch, None, None]:
    """An endless stream of training batches; every epoch is a fresh permutation.

    Args:
        dataset: The data set.
        batch_size: Global batch size, over all processes.
        seed: Decides order and augmentation.
        start_step: Step to start from: the stream is the one from step 0 with its first
            `start_step` batches left out.
        augment: `none`, or `crop_flip` (zero padding by an eighth of the height, random crop,
            and mirroring where the classes allow it).
        shard: This process's index and the number of processes; the process gets its contiguous
            part of every batch.
        workers: Number of worker processes; 0 reads ahead in threads.

    Returns:
        The stream; `close()` it, or exhaust its owner, to end the reading ahead.

    Raises:
        InputError: The arguments do not fit each other or the data set.
    """
    per_epoch = steps_per_epoch(dataset, batch_size)
    rows = _rows(batch_size, shard)
    if seed < 0 or start_step < 0:
        raise InputError(f"seed={seed} and start_step={start_step} must not be negative.")
    if augment not in ("none", "crop_flip"):
        raise InputError(f"There is no augmentation {augment!r}: choose none or crop_flip.")
    pad = dataset.info.image_shape[0] // 8

    def batch(step: int) -> TrainBatch:
        epoch, number = divmod(step, per_epoch)
        order = epoch_order(len(dataset.train), seed, epoch)
        indices = order[number * batch_size : (number + 1) * batch_size][rows]
        image, label = _gather(dataset.train, indices)
        if augment == "crop_flip":
            rng = np.random.default_rng([seed, _CROPS, step])
            crops = draw_crops(rng, batch_size, pad=pad, mirrors=dataset.info.mirrors)
            image = crop_and_flip(image, crops[rows], pad=pad)
        return {"image": image, "label": label}

    return _stream(batch, start_step, _ENDLESS, workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Generator[EvalBatch, None, None]:
    """One pass over a split, in its order, in batches of one size.

    Args:
        source: The split.
        batch_size: Global batch size, over all processes.
        limit: Use only the first `limit` examples.
        shard: This process's index and the number of processes.

    Returns:
        The batches, as many for every process; the last is padded with zeros, and `mask` tells.

    Raises:
        InputError: The arguments do not fit each other.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InputError(f"batch_size={batch_size} and limit={limit} must be at least 1.")
    rows = _rows(batch_size, shard)
    count = len(source) if limit is None else min(limit, len(source))

    def batch(step: int) -> EvalBatch:
        start, stop = step * batch_size + rows.start, step * batch_size + rows.stop
        image, label = _gather(source, np.arange(min(start, count), min(stop, count)))
        missing = stop - start - len(label)
        return {
            "image": np.pad(image, ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(label, (0, missing)),
            "mask": np.arange(start, stop) < count,
        }

    return _stream(batch, 0, -(-count // batch_size), 0)


def _rows(batch_size: int, shard: tuple[int, int]) -> slice:
    """The rows of a global batch that belong to one process."""
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"Shard {index} of {count} does not exist.")
    if batch_size % count:
        raise InputError(f"A batch size of {batch_size} cannot be shared by {count} processes.")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def _gather(
    source: Source, indices: np.ndarray
) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]:
    if isinstance(source, ArraySource):
        return source.gather(indices)
    raise NotImplementedError


def _stream(
    batch: Callable[[int], Any], start: int, stop: int, workers: int
) -> Generator[Any, None, None]:
    """Make the batches of steps `start` to `stop` ahead of their use."""
    steps = grain.MapDataset.range(start, stop).map(batch)
    batches = steps.to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=_READ_AHEAD)
    )
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()
