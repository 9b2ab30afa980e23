"""The CIFAR sets' own files: the `python` and `binary` archives, packed or unpacked."""

import hashlib
import io
import logging
import pickle
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from tcl_jax.data.prepare import RawData
from tcl_jax.errors import InputError

_log = logging.getLogger(__name__)

_SIDE = 32
_PIXEL_BYTES = 3 * _SIDE * _SIDE


@dataclass(frozen=True)
class _Form:
    """One of the forms in which a CIFAR set is published.

    Attributes:
        archive: Name of the archive.
        sha256: Its checksum.
        folder: Name of the folder in it.
        train: Files of the training split, in order.
        test: The file of the test split.
        labels: For each label feature of TFDS, in the order of the label bytes of a binary
            record: (its key in a pickled batch, the file of class names, their key in it).  Keys
            are None in the binary form.
    """

    archive: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: str
    labels: Mapping[str, tuple[bytes | None, str, bytes | None]]

    @property
    def files(self) -> tuple[str, ...]:
        names = tuple(file for _, file, _ in self.labels.values())
        return tuple(dict.fromkeys((*self.train, self.test, *names)))


CIFAR10 = (
    _Form(
        "cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar-10-batches-bin",
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        {"label": (None, "batches.meta.txt", None)},
    ),
    _Form(
        "cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test_batch",
        {"label": (b"labels", "batches.meta", b"label_names")},
    ),
)
CIFAR100 = (
    _Form(
        "cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        "cifar-100-binary",
        ("train.bin",),
        "test.bin",
        {
            "coarse_label": (None, "coarse_label_names.txt", None),
            "label": (None, "fine_label_names.txt", None),
        },
    ),
    _Form(
        "cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "cifar-100-python",
        ("train",),
        "test",
        {
            "coarse_label": (b"coarse_labels", "meta", b"coarse_label_names"),
            "label": (b"fine_labels", "meta", b"fine_label_names"),
        },
    ),
)


def find(forms: Sequence[_Form], folder: Path) -> Mapping[str, Path]:
    """Look for an archive, or for the folder that was in it.

    Args:
        forms: `CIFAR10` or `CIFAR100`.
        folder: Where to look; it may also be the unpacked folder itself.

    Returns:
        The first find, as {archive name: path}; empty if there is none.
    """
    for form in forms:
        if (folder / form.archive).is_file():
            return {form.archive: folder / form.archive}
        if (folder / form.folder).is_dir():
            return {form.archive: folder / form.folder}
        if all((folder / file).is_file() for file in form.files):
            return {form.archive: folder}
    return {}


def read(forms: Sequence[_Form], files: Mapping[str, Path]) -> RawData:
    """Read one archive or unpacked folder.

    Args:
        forms: `CIFAR10` or `CIFAR100`.
        files: {archive name: path of the archive or folder}.

    Returns:
        The splits `train` and `test`, and the names of the classes.

    Raises:
        InputError: A file is missing or damaged.
    """
    ((archive, path),) = files.items()
    form = next(form for form in forms if form.archive == archive)
    contents = _folder_contents(path, form) if path.is_dir() else _archive_contents(path, form)
    missing = [file for file in form.files if file not in contents]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)} of {form.archive}: fetch that archive again."
        )
    class_names = {
        feature: _class_names(f"{path}: {file}", contents[file], key)
        for feature, (_, file, key) in form.labels.items()
    }
    splits = {}
    for split, batches in (("train", form.train), ("test", (form.test,))):
        parsed = [_batch(f"{path}: {file}", contents[file], form, class_names) for file in batches]
        images = np.concatenate([images for images, _ in parsed])
        labels = np.concatenate([labels for _, labels in parsed])
        splits[split] = _records(f"{split}_", images, labels, tuple(form.labels))
    return RawData(splits, class_names)


def _folder_contents(folder: Path, form: _Form) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in form.files if (folder / file).is_file()}


def _archive_contents(path: Path, form: _Form) -> dict[str, bytes]:
    """The wanted members of an archive, read into memory: nothing is unpacked to disk."""
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != form.sha256:
        _log.warning("%s is not the official %s; reading it all the same.", path, form.archive)
    contents = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r|*") as archive:
            for member in archive:
                folder, file = PurePosixPath("_", member.name).parts[-2:]
                if folder == form.folder and file in form.files:
                    stream = archive.extractfile(member)
                    if stream is not None:
                        contents[file] = stream.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path} is not a whole archive ({error}): fetch it again.") from error
    return contents


def _class_names(place: str, content: bytes, key: bytes | None) -> list[str]:
    if key is None:
        listed: Any = content.splitlines()
    else:
        listed = _unpickle(place, content).get(key)
    if not isinstance(listed, list) or not all(isinstance(name, bytes) for name in listed):
        raise InputError(f"{place} does not list the class names: fetch the data again.")
    return [name.decode("utf-8", "replace").strip() for name in listed if name.strip()]


def _batch(
    place: str, content: bytes, form: _Form, class_names: Mapping[str, list[str]]
) -> tuple[np.ndarray, np.ndarray]:
    """Parse one batch into images (count, 32, 32, 3) and labels (count, label features)."""
    width = len(form.labels)
    if None in (key for key, _, _ in form.labels.values()):
        if len(content) % (width + _PIXEL_BYTES):
            raise InputError(
                f"{place} is truncated: {len(content)} bytes is not a whole number of records of "
                f"{width + _PIXEL_BYTES} bytes; fetch the data again."
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, width + _PIXEL_BYTES)
        labels = records[:, :width].astype(np.int64)
        pixels: Any = records[:, width:]
    else:
        batch = _unpickle(place, content)
        pixels = batch.get(b"data")
        columns = [batch.get(key) for key, _, _ in form.labels.values() if key is not None]
        if (
            not isinstance(pixels, np.ndarray)
            or pixels.dtype != np.uint8
            or pixels.shape[1:] != (_PIXEL_BYTES,)
            or not all(_are_labels(column, len(pixels)) for column in columns)
        ):
            raise InputError(f"{place} does not hold CIFAR images and labels: fetch them again.")
        labels = np.array(columns, np.int64).T
    for column, (feature, names) in zip(labels.T, class_names.items(), strict=True):
        if column.size and not 0 <= column.min() <= column.max() < len(names):
            raise InputError(
                f"{place} holds a {feature} outside 0 to {len(names) - 1}: fetch the data again."
            )
    return pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1), labels


def _are_labels(column: Any, count: int) -> bool:
    return (
        isinstance(column, list)
        and len(column) == count
        and all(isinstance(label, int) for label in column)
    )


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain containers and NumPy arrays; a pickle could otherwise run any code."""

    def find_class(self, module: str, name: str, /) -> Any:
        match module, name:
            case (("numpy.core.multiarray" | "numpy._core.multiarray"), "_reconstruct"):
                # Taken from an array: the module's own name changes between NumPy versions.
                return np.empty(0).__reduce__()[0]
            case "numpy", "ndarray" | "dtype":
                return getattr(np, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no CIFAR file does")


def _unpickle(place: str, content: bytes) -> dict[bytes, Any]:
    try:
        value = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise InputError(f"{place} cannot be unpickled ({error}): fetch the data again.") from error
    if not isinstance(value, dict):
        raise InputError(f"{place} does not hold a dictionary: fetch the data again.")
    return value


def _records(
    prefix: str, images: np.ndarray, labels: np.ndarray, features: tuple[str, ...]
) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, row) in enumerate(zip(images, labels, strict=True)):
        bgr = np.ascontiguousarray(image[:, :, ::-1])  # OpenCV's order of channels
        png = io.BytesIO(cv2.imencode(".png", bgr)[1].tobytes())
        named = dict(zip(features, map(int, row), strict=True))
        yield index, {"id": f"{prefix}{index:05d}", "image": png, **named}
