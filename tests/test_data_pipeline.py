"""Order, augmentation, sharding and restart of the batches."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import data
from tcl_jax.data.augment import (
    Crops,
    crop_and_flip,
    draw_crops,
)
from tcl_jax.data.pipeline import epoch_order
from tcl_jax.errors import InputError


class _Records:
    """Encoded photographs, as TFDS gives them."""

    def __init__(self, count: int) -> None:
        rng = np.random.default_rng(3)
        coarse = rng.integers(0, 256, (count, 6, 8, 3), np.uint8)
        self.encoded = [
            cv2.imencode(".jpg", cv2.resize(image, (60, 45)))[1].tobytes() for image in coarse
        ]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [
            {"image": self.encoded[i], "label": i, "file_name": f"{i}.JPEG".encode()}
            for i in indices
        ]


def _numbered(count: int, side: int = 8, mirrors: bool = True) -> data.Dataset:
    """Small random images whose label is their index."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (count, side, side, 3), np.uint8)
    source = data.ArraySource(images, np.arange(count, dtype=np.int32))
    return _described(source, side, mirrors)


def _photographs(count: int = 20) -> data.Dataset:
    return _described(data.JpegSource(_Records(count), "a test", 24), 24, True)


def _described(source: data.Source, side: int, mirrors: bool) -> data.Dataset:
    info = data.DataInfo(
        "numbered", (side, side, 3), len(source), len(source), len(source),
        (0.5,) * 3, (0.2,) * 3, mirrors,
    )  # fmt: skip
    return data.Dataset(info, source, source)


def _take(count: int, batches: Iterator[Any]) -> list[Any]:
    taken = list(itertools.islice(batches, count))
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return taken


def _assert_equal(left: list[Any], right: list[Any]) -> None:
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


KINDS = {
    "none": (_numbered(50), "none"),
    "crop_flip": (_numbered(50, side=16), "crop_flip"),
    "photographs": (_photographs(), "resized_crop_flip"),
}
KIND = pytest.mark.parametrize(("dataset", "augment"), KINDS.values(), ids=KINDS)


@given(count=st.integers(1, 300), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_example_once(count: int, seed: int, epoch: int) -> None:
    order = epoch_order(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(100, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == len(orders)


@given(count=st.integers(4, 40), batch_size=st.integers(1, 4), seed=st.integers(0, 100))
def test_the_stream_is_made_of_whole_epochs(count: int, batch_size: int, seed: int) -> None:
    dataset = _numbered(count, side=1)
    steps = data.steps_per_epoch(dataset.info, batch_size)
    assert steps == count // batch_size
    stream = data.train_batches(dataset, batch_size=batch_size, seed=seed)
    batches = _take(2 * steps, stream)
    for epoch in (batches[:steps], batches[steps:]):
        labels = np.concatenate([batch["label"] for batch in epoch])
        assert len(set(labels.tolist())) == len(labels) == steps * batch_size
    assert isinstance(dataset.train, data.ArraySource)
    for batch in batches:
        np.testing.assert_array_equal(batch["image"], dataset.train.images[batch["label"]])


def test_the_dropped_remainder_changes_every_epoch() -> None:
    batches = _take(20, data.train_batches(_numbered(13), batch_size=10, seed=0))
    assert len({label for batch in batches for label in batch["label"].tolist()}) == 13


@KIND
def test_batches_have_the_stated_types(dataset: data.Dataset, augment: Any) -> None:
    (batch,) = _take(1, data.train_batches(dataset, batch_size=6, seed=0, augment=augment))
    assert batch["image"].shape == (6, *dataset.info.image_shape)
    assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


@KIND
@pytest.mark.parametrize("start", [1, 7, 30])
def test_restart_from_a_step_is_exact(dataset: data.Dataset, augment: Any, start: int) -> None:
    whole = data.train_batches(dataset, batch_size=8, seed=5, augment=augment)
    rest = data.train_batches(dataset, batch_size=8, seed=5, augment=augment, start_step=start)
    _assert_equal(_take(start + 4, whole)[start:], _take(4, rest))


@KIND
@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batch_of_one(dataset: data.Dataset, augment: Any, count: int) -> None:
    def batches(shard: tuple[int, int]) -> list[Any]:
        stream = data.train_batches(dataset, batch_size=8, seed=1, augment=augment, shard=shard)
        return _take(9, stream)

    shards = [batches((index, count)) for index in range(count)]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    _assert_equal(joined, batches((0, 1)))


def test_worker_processes_change_nothing() -> None:
    dataset = _photographs()
    streams = [
        data.train_batches(dataset, batch_size=5, seed=2, augment="resized_crop_flip", workers=n)
        for n in (0, 2)
    ]
    _assert_equal(*(_take(6, stream) for stream in streams))


def test_a_killed_worker_is_told() -> None:
    batches = data.train_batches(_numbered(20), batch_size=5, seed=0, workers=1)
    with closing(batches):
        next(batches)
        (worker,) = multiprocessing.active_children()
        worker.kill()
        with pytest.raises(InputError, match=r"killed, .* fewer workers than 1"):
            for _ in range(1000):
                next(batches)


_WORKED_FOR = """
import multiprocessing, time
from tcl_jax import data
if __name__ == "__main__":
    batches = data.train_batches(data.load("digits"), batch_size=5, seed=0, workers=1)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(100)
"""


def test_workers_end_with_what_they_work_for_and_not_before(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_WORKED_FOR, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, text=True
    ) as worked_for:
        assert worked_for.stdout is not None
        worker = int(worked_for.stdout.readline())
        for asked in (signal.SIGINT, signal.SIGTERM):  # as it comes to all of a process group
            os.kill(worker, asked)
        time.sleep(0.5)
        os.kill(worker, 0)
        worked_for.kill()
        until = time.monotonic() + 10
        while Path(f"/proc/{worker}").exists():
            assert time.monotonic() < until, "the worker goes on"
            time.sleep(0.05)


@pytest.mark.parametrize("augment", ["crop_flip", "resized_crop_flip"])
def test_augmentation_differs_between_steps_and_seeds(augment: Any) -> None:
    # All examples are equal, so that only their augmentation can make a difference.
    if augment == "crop_flip":
        image = np.random.default_rng(0).integers(1, 256, (1, 32, 32, 3), np.uint8)
        source = data.ArraySource(np.repeat(image, 40, 0), np.zeros(40, np.int32))
        dataset = _described(source, 32, True)
    else:
        records = _Records(1)
        records.encoded *= 40
        dataset = _described(data.JpegSource(records, "a test", 24), 24, True)

    def images(seed: int) -> list[np.ndarray]:
        stream = data.train_batches(dataset, batch_size=20, seed=seed, augment=augment)
        return [batch["image"] for batch in _take(3, stream)]  # an epoch has two

    first, second, next_epoch = images(0)
    for other in (second, next_epoch, images(1)[0], np.roll(first, 1, 0)):
        same = [np.array_equal(a, b) for a, b in zip(first, other, strict=True)]
        assert np.mean(same) < 0.3


def test_crop_and_flip_is_padding_slicing_and_mirroring() -> None:
    images = np.random.default_rng(0).integers(1, 256, (3, 6, 6, 2), np.uint8)
    crops = Crops(np.array([[2, 2], [0, 1], [4, 3]]), np.array([False, True, False]))
    result = crop_and_flip(images, crops, pad=2)
    np.testing.assert_array_equal(result[0], images[0])
    expected = np.zeros((6, 6, 2), np.uint8)
    expected[2:, 1:] = images[1, :4, :5]
    np.testing.assert_array_equal(result[1], expected[:, ::-1])
    expected = np.zeros((6, 6, 2), np.uint8)
    expected[:4, :5] = images[2, 2:, 1:]
    np.testing.assert_array_equal(result[2], expected)


def test_crops_are_uniform_and_half_are_mirrored() -> None:
    crops = draw_crops(np.random.default_rng(0), 20_000, pad=2, mirrors=True)
    counts = np.bincount(crops.corner[:, 0] * 5 + crops.corner[:, 1], minlength=25)
    assert counts.shape == (25,) and np.abs(counts / 800 - 1).max() < 0.2
    assert abs(crops.mirrored.mean() - 0.5) < 0.02


def test_digits_are_never_mirrored() -> None:
    crops = draw_crops(np.random.default_rng(0), 1000, pad=1, mirrors=False)
    assert not crops.mirrored.any()
    # Left halves black, right halves white: a mirrored image would be white on the left.
    half = np.zeros((16, 16, 16, 3), np.uint8)
    half[:, :, 8:] = 255
    source = data.ArraySource(half, np.arange(16, dtype=np.int32))
    for mirrors, expected in ((False, 0), (True, 255)):
        dataset = _described(source, 16, mirrors)
        batches = _take(3, data.train_batches(dataset, batch_size=16, seed=0, augment="crop_flip"))
        assert max(batch["image"][:, 5:10, 4].max() for batch in batches) == expected


@pytest.mark.parametrize("dataset", [_numbered(23), _photographs(23)], ids=["array", "jpeg"])
@pytest.mark.parametrize("limit", [None, 10, 16, 100])
@pytest.mark.parametrize("first", [0, 9])
@pytest.mark.parametrize("count", [1, 4])
def test_evaluation_sees_every_example_once(
    dataset: data.Dataset, limit: int | None, first: int, count: int
) -> None:
    source = dataset.test
    which: dict[str, Any] = {"batch_size": 8, "first": first, "limit": limit}
    shards = [
        list(data.eval_batches(source, **which, shard=(index, count))) for index in range(count)
    ]
    seen = min(limit or 23, 23 - first)
    assert {len(batches) for batches in shards} == {-(-seen // 8)}
    labels = []
    for parts in zip(*shards, strict=True):
        for batch in parts:
            assert batch["image"].shape == (8 // count, *dataset.info.image_shape)
            assert (batch["label"].dtype, batch["mask"].dtype) == (np.int32, np.bool_)
            assert not batch["image"][~batch["mask"]].any()
            assert not batch["label"][~batch["mask"]].any()
            for image, label in zip(
                batch["image"][batch["mask"]], batch["label"][batch["mask"]], strict=True
            ):
                np.testing.assert_array_equal(image, source[int(label)]["image"])
                labels.append(int(label))
    assert labels == list(range(first, first + seen))


def test_evaluation_does_not_write_into_the_source() -> None:
    dataset = _numbered(5)
    assert isinstance(dataset.test, data.ArraySource)
    before = dataset.test.images.copy()
    assert len(list(data.eval_batches(dataset.test, batch_size=4))) == 2
    np.testing.assert_array_equal(dataset.test.images, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 51}, "51 .* 50"),
        ({"batch_size": 0}, "batch size of 0"),
        ({"batch_size": 8, "shard": (2, 2)}, "Shard 2 of 2"),
        ({"batch_size": 9, "shard": (0, 2)}, "cannot be shared by 2"),
        ({"batch_size": 8, "seed": -1}, "seed=-1"),
        ({"batch_size": 8, "start_step": -1}, "start_step=-1"),
        ({"batch_size": 8, "workers": -1}, "workers must not be negative"),
        ({"batch_size": 8, "augment": "mixup"}, "choose from none, crop_flip"),
        ({"batch_size": 8, "augment": "resized_crop_flip"}, "choose crop_flip"),
    ],
)
def test_unusable_arguments_are_refused_at_once(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        data.train_batches(_numbered(50), **{"seed": 0, **arguments})


def test_small_image_crops_are_refused_for_photographs() -> None:
    with pytest.raises(InputError, match="choose resized_crop_flip"):
        data.train_batches(_photographs(), batch_size=2, seed=0, augment="crop_flip")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "at least 1"),
        ({"limit": 0}, "at least 1"),
        ({"first": 5}, "first=5 must be one of 5"),
        ({"first": -1}, "first=-1 must be one of 5"),
    ],
)
def test_unusable_evaluation_arguments_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        data.eval_batches(_numbered(5).test, **{"batch_size": 4, **arguments})


def test_standardize_is_the_stated_formula() -> None:
    info = _numbered(1).info
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        result = jax.jit(lambda pixels: data.standardize(pixels, info))(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, (image / 255 - 0.5) / 0.2, atol=1e-5)
