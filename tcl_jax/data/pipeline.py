"""Batches: which examples, in which order, cut and mirrored how, for which process.

Everything random is a function of the seed and of a position in the stream, never of hidden
state.  So a run restarts exactly from a step, and any number of processes sees the same batch.
"""

import math
import os
from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict, get_args

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from tcl_jax.data.ahead import ahead
from tcl_jax.data.augment import crop_and_flip, draw_crops, draw_resized_crops
from tcl_jax.data.dataset import DataInfo, Dataset, Source
from tcl_jax.data.jpeg import JpegSource
from tcl_jax.errors import InputError

Augment = Literal["none", "crop_flip", "resized_crop_flip"]

# Purposes of random streams, so that two of them never share a seed.
_ORDER, _CROPS = 0, 1
_ENDLESS = 2**62
_MOST_THREADS = 16


class TrainBatch(TypedDict):
    """One process's part of a training batch."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]


class EvalBatch(TypedDict):
    """One process's part of an evaluation batch; `mask` is false on padding."""

    image: UInt8[np.ndarray, "b h w c"]
    label: Int32[np.ndarray, " b"]
    mask: Bool[np.ndarray, " b"]


def steps_per_epoch(info: DataInfo, batch_size: int) -> int:
    """Full batches in one pass over the training split.

    Args:
        info: Of the data set.
        batch_size: Global batch size.

    Returns:
        The number of steps; the remainder of each epoch's order is dropped.

    Raises:
        InputError: The batch is larger than the split, or not positive.

    >>> from tcl_jax import data
    >>> data.steps_per_epoch(data.load("digits").info, 64)
    22
    """
    if not 0 < batch_size <= info.num_train:
        raise InputError(
            f"A batch size of {batch_size} does not fit {info.name}: it must lie between "
            f"1 and the number of training examples, {info.num_train}."
        )
    return info.num_train // batch_size


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
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(num_examples).astype(np.int32)
    order.flags.writeable = False  # it is shared by all callers
    return order


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
        augment: `none` (photographs: the crop of evaluation); for small images `crop_flip`:
            zero padding by an eighth of the height, random crop, and mirroring where the classes
            allow it; for photographs `resized_crop_flip`: random resized crop and mirroring.
        shard: This process's index and the number of processes; the process gets its contiguous
            part of every batch.
        workers: Processes that make batches, beside this one.  With 0 its threads do, one for
            each core, which one interpreter holds up where they are many; processes take some
            seconds to begin, and end with this one.

    Returns:
        The stream; reading ahead ends when it is closed (`close()`) or collected.

    Raises:
        InputError: The arguments do not fit each other or the data set; later, an image is damaged
            or a worker process was killed.

    >>> from tcl_jax import data
    >>> digits = data.load("digits")
    >>> batches = data.train_batches(digits, batch_size=64, seed=0)
    >>> second = [next(batches) for _ in range(2)][1]
    >>> resumed = next(data.train_batches(digits, batch_size=64, seed=0, start_step=1))
    >>> resumed["image"].shape, bool((resumed["image"] == second["image"]).all())
    ((64, 8, 8, 1), True)
    """
    steps_per_epoch(dataset.info, batch_size)  # refuses what does not fit
    rows = _rows(batch_size, shard)
    if seed < 0 or start_step < 0:
        raise InputError(f"seed={seed} and start_step={start_step} must not be negative.")
    if workers < 0:
        raise InputError(f"must not be negative, got {workers}", "workers")
    if augment not in get_args(Augment):
        raise InputError(
            f"There is no augmentation {augment!r}: choose from {', '.join(get_args(Augment))}."
        )
    train, info = dataset.train, dataset.info
    if augment == "resized_crop_flip" and not isinstance(train, JpegSource):
        raise InputError(f"resized_crop_flip is for photographs: choose crop_flip for {info.name}.")
    if augment == "crop_flip" and isinstance(train, JpegSource):
        raise InputError(
            f"crop_flip is for small images: choose resized_crop_flip for {info.name}."
        )
    batch = _TrainBatches(train, info, augment, batch_size, rows, seed)
    return ahead(batch, range(start_step, _ENDLESS), _threads(train, workers), workers)


@dataclass(frozen=True)
class _TrainBatches:
    """The batch of any step: a class, and no function inside another, for worker processes."""

    source: Source
    info: DataInfo
    augment: Augment
    batch_size: int
    rows: slice
    seed: int

    def __call__(self, step: int) -> TrainBatch:
        epoch, number = divmod(step, len(self.source) // self.batch_size)
        order = epoch_order(len(self.source), self.seed, epoch)
        indices = order[number * self.batch_size : (number + 1) * self.batch_size][self.rows]
        if isinstance(self.source, JpegSource) and self.augment == "resized_crop_flip":
            rng = np.random.default_rng([self.seed, _CROPS, step])
            resized = draw_resized_crops(rng, self.batch_size)
            image, label = self.source.random_crops(indices, resized[self.rows])
        else:
            image, label = self.source.gather(indices)
        if self.augment == "crop_flip":
            pad = self.info.image_shape[0] // 8
            rng = np.random.default_rng([self.seed, _CROPS, step])
            crops = draw_crops(rng, self.batch_size, pad=pad, mirrors=self.info.mirrors)
            image = crop_and_flip(image, crops[self.rows], pad=pad)
        return {"image": image, "label": label}


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    first: int = 0,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Generator[EvalBatch, None, None]:
    """One pass over a split, in its order, in batches of one size.

    Args:
        source: The split.
        batch_size: Global batch size, over all processes.
        first: The number of the first example.
        limit: Use only so many examples.
        shard: This process's index and the number of processes.

    Returns:
        The batches, as many for every process; the last is padded with zeros, and `mask` tells.

    Raises:
        InputError: The arguments do not fit each other.

    >>> from tcl_jax import data
    >>> digits = data.load("digits")
    >>> [int(batch["mask"].sum()) for batch in data.eval_batches(digits.test, batch_size=100)]
    [100, 100, 100, 59]
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise InputError(f"batch_size={batch_size} and limit={limit} must be at least 1.")
    if not 0 <= first < len(source):
        raise InputError(f"first={first} must be one of {len(source)} examples, from 0.")
    rows = _rows(batch_size, shard)
    end = len(source) if limit is None else min(first + limit, len(source))

    def batch(step: int) -> EvalBatch:
        start = first + step * batch_size
        positions = np.arange(start, start + batch_size)[rows]
        mask = positions < end
        image, label = source.gather(np.minimum(positions, end - 1))
        image[~mask], label[~mask] = 0, 0
        return {"image": image, "label": label, "mask": mask}

    return ahead(batch, range(-((first - end) // batch_size)), _threads(source), workers=0)


def _rows(batch_size: int, shard: tuple[int, int]) -> slice:
    """The rows of a global batch that belong to one process."""
    index, count = shard
    if not 0 <= index < count:
        raise InputError(f"Shard {index} of {count} does not exist.")
    if batch_size % count:
        raise InputError(f"A batch size of {batch_size} cannot be shared by {count} processes.")
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def _threads(source: Source, workers: int = 0) -> int:
    """Batches that a process makes at the same time: gathering small images needs no help."""
    if not isinstance(source, JpegSource):
        return 1
    share = math.ceil(len(os.sched_getaffinity(0)) / max(1, workers))
    return min(_MOST_THREADS, share)
