"""Data sets by name: what each one is, where its files may lie, and how it is loaded."""

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from tcl_jax.data import idx
from tcl_jax.data.dataset import ArraySource, DataInfo, Dataset, Source
from tcl_jax.data.prepare import (
    RawData,
    find_prepared,
    official_urls,
    prepare,
    reachable,
)
from tcl_jax.errors import InputError


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
    num_classes: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: _Files | None
    mirrors: bool = True


_SPECS = {
    "digits": _Spec(10, 1, (0.3055,), (0.3759,), None, mirrors=False),
    "fashion_mnist": _Spec(
        10,
        1,
        (0.2860,),
        (0.3530,),
        _Files(
            idx.find,
            idx.read,
            "{train,t10k}-{images-idx3,labels-idx1}-ubyte.gz, plain or gzipped",
            system_folder=Path("/usr/share/datasets/fashion-mnist"),
        ),
    ),
}


def names() -> tuple[str, ...]:
    """The names that `load` takes."""
    return tuple(_SPECS)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    raw_dir: str | os.PathLike[str] | None = None,
    pad_to: int | None = None,
) -> Dataset:
    """Load a data set, preparing it first if need be.

    It is looked for as prepared data in `data_dir`, then as raw files in `raw_dir` (and where a
    system package puts them), then on the official server.  `digits` needs none of this.

    Args:
        name: One of `names()`.
        data_dir: Folder of prepared data; `$TFDS_DATA_DIR` or `~/tensorflow_datasets` if None.
        raw_dir: Folder of raw files in their official layout.
        pad_to: Pad small images with zeros, centred, to this height and width.

    Returns:
        The data set, in memory.

    Raises:
        InputError: The name is unknown, or the data is nowhere to be had or damaged.
    """
    spec = _spec(name)
    if spec.files is None:
        train, test = _digits()
    else:
        builder = _prepared(name, spec.files, _data_dir(data_dir), raw_dir)
        train, test = _decode(builder, "train"), _decode(builder, "test")
    if pad_to is not None:
        train, test = _pad(train, pad_to), _pad(test, pad_to)
    return Dataset(_info(name, spec, train.images.shape[1:3], train, test), train, test)


def _spec(name: str) -> _Spec:
    if name not in _SPECS:
        close = difflib.get_close_matches(name, _SPECS, n=2)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise InputError(f"There is no data set {name!r}{hint}: choose from {', '.join(_SPECS)}.")
    return _SPECS[name]


def _info(name: str, spec: _Spec, size: tuple[int, ...], train: Source, test: Source) -> DataInfo:
    height, width = size
    return DataInfo(
        name=name,
        image_shape=(height, width, spec.channels),
        num_classes=spec.num_classes,
        num_train=len(train),
        num_test=len(test),
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
    raw_places = " or ".join(map(str, folders)) or "any folder (none was given as raw_dir)"
    tried = (
        f", and the server of {next(iter(urls.values()))} does not answer"
        if urls
        else " (it cannot be downloaded without registration)"
    )
    return (
        f"{name} was not found: no prepared data in {data_dir / name}, no raw files "
        f"({files.wanted}) in {raw_places}{tried}; put the raw files in a folder and give it as "
        "raw_dir, or give the data_dir of prepared ArrayRecord data."
    )


def _decode(builder: tfds.core.DatasetBuilder, split: str) -> ArraySource:
    """Decode a whole split of small PNG images into memory."""
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    if len(records) == 0:
        raise InputError(f"The split {split} of {builder.data_path} is empty: prepare it again.")
    examples = records.__getitems__(range(len(records)))
    images = []
    for number, example in enumerate(examples):
        image = cv2.imdecode(np.frombuffer(example["image"], np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None:  # OpenCV does not raise on a damaged image
            raise InputError(
                f"Image {number} of split {split} in {builder.data_path} is damaged: delete that "
                "folder to have it prepared again."
            )
        images.append(image[:, :, None] if image.ndim == 2 else image[:, :, ::-1])
    labels = np.array([example["label"] for example in examples], np.int32)
    return ArraySource(np.stack(images), labels)


def _digits() -> tuple[ArraySource, ArraySource]:
    """scikit-learn's embedded digits; a fifth of each class is the test split."""
    # Loaded here because scikit-learn takes a second to import and only this needs it.
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    labels = targets.astype(np.int32)
    rng = np.random.default_rng(0)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(len(members) / 5)]] = True
    # Consecutive digits were written by the same person: a prefix of a split should not be.
    train, test = (rng.permutation(np.flatnonzero(chosen)) for chosen in (~is_test, is_test))
    return ArraySource(images[train], labels[train]), ArraySource(images[test], labels[test])


def _pad(source: ArraySource, side: int) -> ArraySource:
    _, height, width, _ = source.images.shape
    if side < max(height, width):
        raise InputError(f"pad_to={side} is smaller than the images ({height} x {width}).")
    above, left = (side - height) // 2, (side - width) // 2
    margins = ((0, 0), (above, side - height - above), (left, side - width - left), (0, 0))
    return ArraySource(np.pad(source.images, margins), source.labels)
