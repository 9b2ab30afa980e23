"""ImageNet's own files: a folder of JPEG files for each class, or the official tar files."""

import io
import re
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder import CMYK_IMAGES

from tcl_jax.data.jpeg import decode_jpeg
from tcl_jax.data.prepare import RawData
from tcl_jax.errors import InputError

# TFDS's name of each split, and what its folder is called; the tar is named after the latter.
_SPLITS = {"train": "train", "validation": "val"}
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
_TFDS_FOLDER = "datasets/imagenet2012"

_Record = tuple[str, dict[str, Any]]


def find(folder: Path) -> Mapping[str, Path]:
    """Look for each split, as a tar file or as a folder of images.

    Args:
        folder: Where to look.

    Returns:
        {`train` or `val`: path of the tar file or folder}; empty if neither is there.
    """
    found = {}
    for short in _SPLITS.values():
        tar, images = folder / f"ILSVRC2012_img_{short}.tar", folder / short
        if tar.is_file():
            found[short] = tar
        elif images.is_dir():
            found[short] = images
    return found


def read(files: Mapping[str, Path]) -> RawData:
    """Read both splits, one image at a time.

    Args:
        files: What `find` found.

    Returns:
        The splits `train` and `validation`.

    Raises:
        InputError: A split is missing; while reading, a file is damaged or misnamed.
    """
    missing = [short for short in _SPLITS.values() if short not in files]
    if missing:
        beside = next(iter(files.values())).parent
        raise InputError(
            f"ImageNet is incomplete: {beside} also needs "
            + " and ".join(f"ILSVRC2012_img_{short}.tar or {short}/" for short in missing)
            + "."
        )
    wnids = set(_lines("labels.txt"))
    validation = _lines("validation_labels.txt")
    return RawData(
        {split: _split(files[short], wnids, validation) for split, short in _SPLITS.items()}
    )


def _lines(file: str) -> list[str]:
    return Path(tfds.core.tfds_path(f"{_TFDS_FOLDER}/{file}")).read_text().split()


def _split(place: Path, wnids: set[str], validation: list[str]) -> Iterator[_Record]:
    """Records of one split, with checked labels."""
    count = 0
    for path, content in _folder_images(place) if place.is_dir() else _tar_images(place):
        # Either the folder (or inner tar file) names the class, or the official list does.
        label = path.parent.name.removesuffix(".tar")
        if not label:
            number = _VALIDATION_NAME.fullmatch(path.name)
            if number is None or not 1 <= int(number[1]) <= len(validation):
                raise InputError(
                    f"{place} holds {path.name}, which is neither in a folder of its class nor "
                    "named like ILSVRC2012_val_00000001.JPEG."
                )
            label = validation[int(number[1]) - 1]
        if label not in wnids:
            raise InputError(f"{place} holds {path}, but {label} is not an ImageNet class.")
        image = io.BytesIO(_as_rgb_jpeg(path.name, content, f"{path} in {place}"))
        yield path.name, {"file_name": path.name, "image": image, "label": label}
        count += 1
    if not count:
        raise InputError(f"{place} holds no images (class/name.JPEG, or name.JPEG for val).")


def _folder_images(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Images with their path below `folder`."""
    for pattern in ("*.JPEG", "*/*.JPEG"):
        for path in sorted(folder.glob(pattern)):
            yield PurePosixPath(path.relative_to(folder)), path.read_bytes()


def _tar_images(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Images of a tar file, those of inner tar files under their name."""
    with path.open("rb") as file:
        for name, content in _members(path, file):
            if name.endswith(".tar"):
                for inner, image in _members(path / name, io.BytesIO(content)):
                    yield PurePosixPath(name, PurePosixPath(inner).name), image
            elif name.endswith(".JPEG"):
                yield PurePosixPath(PurePosixPath(name).name), content


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None:
                    yield PurePosixPath(member.name).name, stream.read()
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is not a whole tar file ({error}): fetch it again.") from error


def _as_rgb_jpeg(name: str, content: bytes, place: str) -> bytes:
    """The file as it is, except the few that are CMYK or no JPEG, which TFDS converts too."""
    if content[:2] == b"\xff\xd8" and name not in CMYK_IMAGES:
        return content
    bgr = np.ascontiguousarray(decode_jpeg(content, place)[:, :, ::-1])
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
