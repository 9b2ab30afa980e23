"""Fashion-MNIST's own files: four arrays in IDX format, gzipped or plain."""

import gzip
import hashlib
import io
import logging
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tcl_jax.data.prepare import RawData
from tcl_jax.errors import InputError

_log = logging.getLogger(__name__)

# Each file's name, and the SHA-256 of its official content once decompressed: the compressed
# bytes differ from one distributor to the next.
OFFICIAL_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
_PREFIXES = {"train": "train", "test": "t10k"}
_IMAGE_SIDE = 28


def find(folder: Path) -> Mapping[str, Path]:
    """Look for the four files in a folder.

    Args:
        folder: Where to look.

    Returns:
        Path by official name without `.gz`; empty if none of the files is there.
    """
    found = {}
    for name in OFFICIAL_SHA256:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                found[name] = path
                break
    return found


def read(files: Mapping[str, Path]) -> RawData:
    """Read the four files.

    Args:
        files: Path by official name, with or without `.gz`.

    Returns:
        The splits `train` and `test`, in the order of the files.

    Raises:
        InputError: A file is missing, damaged, or does not fit the others.
    """
    files = {name.removesuffix(".gz"): path for name, path in files.items()}
    missing = [name for name in OFFICIAL_SHA256 if name not in files]
    if missing:
        beside = next(iter(files.values())).parent
        raise InputError(
            f"Fashion-MNIST is incomplete in {beside}: {', '.join(missing)} "
            "(plain or .gz) must lie there too."
        )
    splits = {}
    for split, prefix in _PREFIXES.items():
        images_path = files[f"{prefix}-images-idx3-ubyte"]
        labels_path = files[f"{prefix}-labels-idx1-ubyte"]
        images = _read_array(images_path, f"{prefix}-images-idx3-ubyte")
        labels = _read_array(labels_path, f"{prefix}-labels-idx1-ubyte")
        if images.ndim != 3 or images.shape[1:] != (_IMAGE_SIDE, _IMAGE_SIDE):
            raise InputError(
                f"{images_path} holds an array of shape {images.shape} instead of "
                f"(count, {_IMAGE_SIDE}, {_IMAGE_SIDE}): it is not Fashion-MNIST's image file."
            )
        if labels.shape != images.shape[:1]:
            raise InputError(
                f"{labels_path} holds labels of shape {labels.shape} for the {len(images)} images "
                f"of {images_path}: fetch both again from the same place."
            )
        if labels.size and labels.max() > 9:
            raise InputError(
                f"{labels_path} holds the label {labels.max()}, but Fashion-MNIST's labels "
                "are 0 to 9: fetch it again."
            )
        splits[split] = _records(images, labels)
    return RawData(splits)


def _read_array(path: Path, official_name: str) -> np.ndarray:
    """Parse one IDX file of unsigned bytes."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{path} is not a whole gzip file ({error}): fetch it again."
            ) from error
    # The header: two zero bytes, the type (8 is unsigned byte), the rank, then each size.
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise InputError(f"{path} is not an IDX file of unsigned bytes: fetch it again.")
    rank = content[3]
    start = 4 + 4 * rank
    shape = tuple(
        int(size) for size in np.frombuffer(content[4:start], ">u4", len(content[4:start]) // 4)
    )
    expected = start + int(np.prod(shape, dtype=np.int64))
    if len(shape) < rank or len(content) != expected:
        raise InputError(
            f"{path} is truncated or damaged: its header announces {expected} bytes and it "
            f"has {len(content)}; fetch it again."
        )
    if hashlib.sha256(content).hexdigest() != OFFICIAL_SHA256[official_name]:
        _log.warning("%s is not the official %s; reading it all the same.", path, official_name)
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _records(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO(cv2.imencode(".png", image)[1].tobytes())
        yield index, {"image": png, "label": int(label)}
