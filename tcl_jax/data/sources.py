"""Data sets by name: what each one is, where its files may lie, and how it is loaded."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tcl_jax.data import cifar, digits, idx, imagenet
from tcl_jax.data.dataset import ArraySource, DataInfo, Dataset, Source
from tcl_jax.data.jpeg import JpegSource
from tcl_jax.data.prepare import (
    RawData,
    find_prepared,
    official_urls,
    prepare,
    reachable,
    records,
)
from tcl_jax.errors import InputError
from tcl_jax.registry import Registry


@dataclass(frozen=True)
class _Files:
    """Where the files of a data set come from.

    Attributes:
        find: Looks in a folder for raw files.
        read: Parses what `find` found, or what was downloaded.
        wanted: The raw files, in words, for messages.
        downloads: Whether the official files can be had without registration.
        system_folder: A folder where a system package puts the raw files.
    """

    find: Callable[[Path], Mapping[str, Path]]
    read: Callable[[Mapping[str, Path]], RawData]
    wanted: str
    downloads: bool = True
    system_folder: Path | None = None


@dataclass(frozen=True)
class _Spec:
    """A data set as published.

    Attributes:
        side: Height and width of its images, or of what is cut from them unless told otherwise.
        sizes: Numbers of training and of test images.
    """

    side: int
    sizes: tuple[int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: _Files | None = None
    mirrors: bool = True
    photographs: bool = False


DATASETS = Registry(
    "data set",
    {
        "digits": _Spec(8, (1438, 359), 10, (0.3055,), (0.3759,), mirrors=False),
        "fashion_mnist": _Spec(
            28,
            (60_000, 10_000),
            10,
            (0.2860,),
            (0.3530,),
            _Files(
                idx.find,
                idx.read,
                "{train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz",
                system_folder=Path("/usr/share/datasets/fashion-mnist"),
            ),
        ),
        "cifar10": _Spec(
            32,
            (50_000, 10_000),
            10,
            (0.4914, 0.4822, 0.4465),
            (0.2470, 0.2435, 0.2616),
            _Files(
                partial(cifar.find, cifar.CIFAR10),
                partial(cifar.read, cifar.CIFAR10),
                "cifar-10-binary.tar.gz or cifar-10-python.tar.gz, or the folder in it",
            ),
        ),
        "cifar100": _Spec(
            32,
            (50_000, 10_000),
            100,
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            _Files(
                partial(cifar.find, cifar.CIFAR100),
                partial(cifar.read, cifar.CIFAR100),
                "cifar-100-binary.tar.gz or cifar-100-python.tar.gz, or the folder in it",
            ),
        ),
        "imagenet2012": _Spec(
            224,
            (imagenet.COUNTS["train"], imagenet.COUNTS["val"]),
            1000,
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            _Files(
                imagenet.find,
                imagenet.read,
                "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or folders train and val",
                downloads=False,
            ),
            photographs=True,
        ),
    },
)
"""All that `load` knows."""


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    raw_dir: str | os.PathLike[str] | None = None,
    pad_to: int | None = None,
    image_size: int | None = None,
) -> Dataset:
    """Load a data set, preparing it first if need be.

    It is looked for as prepared data in `data_dir`, then as raw files in `raw_dir` (and where a
    system package puts them), then on the official server.  `digits` needs none of this.

    Args:
        name: One of `DATASETS`.
        data_dir: Folder of prepared data; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` if None.
        raw_dir: Folder of raw files in their official layout.
        pad_to: Pad small images with zeros, centred, to this height and width.
        image_size: Crop photographs (ImageNet) to this height and width; 224 if None.

    Returns:
        The data set: small images in memory, photographs decoded when they are asked for.

    Raises:
        InputError: The name is unknown, an option does not fit the data set, or the data is
            nowhere to be had or damaged.

    >>> from tcl_jax import data
    >>> info = data.load("digits").info
    >>> info.image_shape, info.num_classes, info.num_train, info.num_test
    ((8, 8, 1), 10, 1438, 359)
    """
    spec = DATASETS.find(name)
    size = _size(name, spec, pad_to, image_size)
    if spec.files is None:
        train, test = digits.load()
    else:
        builder = _prepared(name, spec.files, _data_dir(data_dir), raw_dir)
        if spec.photographs:
            return _photographs(name, spec, builder, size)
        train, test = _decode(builder, "train"), _decode(builder, "test")
    return _dataset(name, spec, size, _pad(train, size), _pad(test, size))


def described(name: str, *, pad_to: int | None = None, image_size: int | None = None) -> DataInfo:
    """A data set as it is published, for what needs none of its images.

    Args:
        name: One of `DATASETS`.
        pad_to: As `load` has it.
        image_size: Likewise.

    Raises:
        InputError: The name is unknown, or an option does not fit the data set.

    >>> from tcl_jax import data
    >>> data.described("digits") == data.load("digits").info
    True
    """
    spec = DATASETS.find(name)
    return _info(name, spec, _size(name, spec, pad_to, image_size), spec.sizes)


def _size(name: str, spec: _Spec, pad_to: int | None, image_size: int | None) -> int:
    """Height and width of images as they are delivered."""
    if spec.photographs and pad_to is not None:
        raise InputError(f"{name} is cropped, not padded: give image_size instead of pad_to.")
    if not spec.photographs and image_size is not None:
        raise InputError(f"{name} has images of one size: give pad_to instead of image_size.")
    if image_size is not None and image_size < 1:
        raise InputError(f"image_size={image_size} must be at least 1.")
    if pad_to is not None and pad_to < spec.side:
        raise InputError(f"pad_to={pad_to} is smaller than the images ({spec.side} x {spec.side}).")
    return image_size or pad_to or spec.side


def _photographs(name: str, spec: _Spec, builder: tfds.core.DatasetBuilder, size: int) -> Dataset:
    train, test = (
        JpegSource(records(builder, split), f"{builder.data_path}, split {split}", size)
        for split in ("train", "validation")
    )
    return _dataset(name, spec, size, train, test)


def _dataset(name: str, spec: _Spec, size: int, train: Source, test: Source) -> Dataset:
    return Dataset(_info(name, spec, size, (len(train), len(test))), train, test)


def _info(name: str, spec: _Spec, size: int, sizes: tuple[int, int]) -> DataInfo:
    num_train, num_test = sizes
    return DataInfo(
        name=name,
        image_shape=(size, size, len(spec.mean)),
        num_classes=spec.num_classes,
        num_train=num_train,
        num_test=num_test,
        mean=spec.mean,
        std=spec.std,
        mirrors=spec.mirrors,
    )


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    chosen = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    if "://" in chosen:
        raise InputError(
            f"The data directory {chosen} is not a local folder: mount the bucket, since "
            "random access reads local files."
        )
    return Path(chosen).expanduser()


def _prepared(
    name: str, files: _Files, data_dir: Path, raw_dir: str | os.PathLike[str] | None
) -> tfds.core.DatasetBuilder:
    """Find prepared data, or prepare it from the first place that has the raw files."""
    builder = find_prepared(name, data_dir)
    if builder is not None:
        return builder
    folders = []
    if raw_dir is not None:
        folder = Path(raw_dir).expanduser()
        if not folder.is_dir():
            raise InputError(f"The folder of raw files {folder} does not exist.")
        folders.append(folder)
    if files.system_folder is not None:
        folders.append(files.system_folder)
    if not files.downloads:
        folders.append(data_dir / "downloads" / "manual")  # where TFDS would have them put
    found = next(filter(None, map(files.find, folders)), None)
    urls = official_urls(name) if files.downloads else {}
    if found is not None:
        raw_files = found
        prepare(name, data_dir, lambda _: files.read(raw_files))
    elif urls and reachable(next(iter(urls.values()))):
        prepare(name, data_dir, lambda manager: files.read(manager.download(urls)))
    else:
        raise InputError(_not_found(name, files, data_dir, folders, urls))
    builder = find_prepared(name, data_dir)
    assert builder is not None, f"{name} was prepared in {data_dir} and is not there"
    return builder


def _not_found(
    name: str, files: _Files, data_dir: Path, folders: list[Path], urls: Mapping[str, str]
) -> str:
    raw_places = " or ".join(map(str, folders)) or "any folder (none was given)"
    tried = (
        f", and the server of {next(iter(urls.values()))} does not answer"
        if urls
        else " (it cannot be downloaded without registration)"
    )
    return (
        f"{name} was not found: no prepared data in {data_dir / name}, no raw files "
        f"({files.wanted}) in {raw_places}{tried}; put the raw files in a folder and give it as "
        "raw_dir=FOLDER, or give data_dir=FOLDER that holds prepared ArrayRecord data."
    )


def _decode(builder: tfds.core.DatasetBuilder, split: str) -> ArraySource:
    """Decode a whole split of small PNG images into memory."""
    encoded = records(builder, split)
    examples = encoded.__getitems__(range(len(encoded)))
    images = []
    for number, example in enumerate(examples):
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:  # OpenCV does not raise
            raise InputError(
                f"Image {number} of split {split} in {builder.data_path} is damaged: delete that "
                "folder to have it prepared again."
            )
        images.append(image[:, :, None] if image.ndim == 2 else image[:, :, ::-1])
    labels = np.array([example["label"] for example in examples], np.int32)
    return ArraySource(np.stack(images), labels)


def _pad(source: ArraySource, side: int) -> ArraySource:
    _, height, width, _ = source.images.shape
    if side == height == width:
        return source
    above, left = (side - height) // 2, (side - width) // 2
    margins = ((0, 0), (above, side - height - above), (left, side - width - left), (0, 0))
    return ArraySource(np.pad(source.images, margins), source.labels)
