"""ImageNet's own files: a folder of JPEG files for each class, or the official tar files."""

import io
import logging
import os
import re
import tarfile
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from cv2.utils import logging as opencv_logging
from tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder import CMYK_IMAGES

from tcl_jax.data.jpeg import decode, is_flawless
from tcl_jax.data.prepare import RawData
from tcl_jax.errors import InputError

# TFDS's name of each split, and what its folder is called; the tar is named after the latter.
_SPLITS = {"train": "train", "validation": "val"}
COUNTS = {"train": 1_281_167, "val": 50_000}
# Where they may lie in a folder: at once, or as Kaggle unpacks them.
_BELOW = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
_IMAGES = frozenset({".jpeg", ".jpg", ".jpe", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
_OFFICIAL_NAME = re.compile(r"(n\d{8}_\d+|ILSVRC2012_val_\d{8})\.JPEG")
# What systems leave behind: .DS_Store, ._NAME beside NAME and __MACOSX of macOS, Windows' caches
# of thumbnails, and the thumbnails of Synology's file servers, which are images.
_LEFT_BEHIND = re.compile(
    r"\..*|__MACOSX|(eh)?thumbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|@eaDir",
    re.IGNORECASE,
)
_TFDS_FOLDER = "datasets/imagenet2012"
_NAMED_AT_MOST = 100

_Record = tuple[str, dict[str, Any]]
_Checked = tuple[bytes | None, bool]
"""An image as it is stored, None where it is damaged, and whether it may be."""


def find(folder: Path) -> Mapping[str, Path]:
    """Look for each split, as a tar file or as a folder of images.

    Args:
        folder: Where to look.

    Returns:
        {`train` or `val`: path of the tar file or folder}; empty if neither is there.
    """
    found: dict[str, Path] = {}
    for below in _BELOW:
        for short in _SPLITS.values():
            tars = (
                folder / below / f"{front}{short}{ending}"
                for front in ("ILSVRC2012_img_", "")
                for ending in _TAR_ENDINGS
            )
            images = folder / below / short
            if tar := next(filter(Path.is_file, tars), None):
                found.setdefault(short, tar)
            elif images.is_dir():
                found.setdefault(short, images)
    return found


@dataclass
class _Unusable:
    """What is wrong with raw files, gathered from all before anything is said.

    Attributes:
        names: Of images or folders, by what is the matter with them.
        doubtful: Images that can be used, though libjpeg found something odd in them.
    """

    names: dict[str, dict[str, None]] = field(default_factory=dict)
    doubtful: list[str] = field(default_factory=list)

    def add(self, what: str, name: object) -> None:
        self.names.setdefault(what, {})[str(name)] = None

    def refuse(self, beside: Path) -> None:
        """Raise an `InputError` that names them all, if there are any."""
        if not self.names:
            return
        found = "; ".join(f"{what}: {_listed(list(names))}" for what, names in self.names.items())
        raise InputError(
            f"{beside} holds images that cannot be used ({found}): replace or remove them"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def read(files: Mapping[str, Path]) -> RawData:
    """Read both splits, one image at a time.

    Args:
        files: What `find` found.

    Returns:
        The splits `train` and `validation`.

    Raises:
        InputError: A split is missing, or a tar file is cut off; after reading all, images are
            damaged, of no class, or twice there: all of them are named.
    """
    missing = [short for short in _SPLITS.values() if short not in files]
    if missing:
        beside = next(iter(files.values())).parent
        raise InputError(
            f"ImageNet is incomplete: {beside} also needs "
            + " and ".join(f"ILSVRC2012_img_{short}.tar or {short}/" for short in missing)
            + "."
        )
    unusable = _Unusable()
    classes = _Classes(frozenset(_lines("labels.txt")), tuple(_lines("validation_labels.txt")))
    train, validation = (
        _split(files[short], short, classes, unusable) for short in _SPLITS.values()
    )

    def to_the_end() -> Iterator[_Record]:
        # TFDS reads the splits in this order, so that all is known here.
        yield from validation
        unusable.refuse(files["val"].parent)
        if unusable.doubtful:
            logging.warning(
                "%s: images with wrong or superfluous bytes, which may be damaged (%d): %s",
                files["val"].parent,
                len(unusable.doubtful),
                _listed(unusable.doubtful),
            )

    return RawData({"train": train, "validation": to_the_end()})


def _lines(file: str) -> list[str]:
    return Path(tfds.core.tfds_path(f"{_TFDS_FOLDER}/{file}")).read_text(encoding="utf-8").split()


@dataclass(frozen=True)
class _Classes:
    """The official classes.

    Attributes:
        wnids: Their names, as folders bear them.
        validation: Those of the validation images, by number from 1.
    """

    wnids: frozenset[str]
    validation: tuple[str, ...]

    def of(self, path: PurePosixPath, short: str) -> str | None:
        """By the nearest folder (or inner tar file) that is a class, or else the official list."""
        for parent in path.parents:
            if (name := parent.name.partition(".")[0]) in self.wnids:
                return name
        number = _VALIDATION_NAME.fullmatch(path.name) if short == "val" else None
        if number is None or not 1 <= int(number[1]) <= len(self.validation):
            return None
        return self.validation[int(number[1]) - 1]


def _split(place: Path, short: str, classes: _Classes, unusable: _Unusable) -> Iterator[_Record]:
    """Records of one split, each with its label; what cannot be one is noted."""
    seen: dict[str, PurePosixPath] = {}
    empty = True
    for path, (image, doubtful) in _as_rgb_jpegs(_images(place)):
        empty = False
        label = classes.of(path, short)
        # The stock builder's key where there is one: the same order then.
        key = path.name if _OFFICIAL_NAME.fullmatch(path.name) else str(path)
        named = PurePosixPath(place.name, path)
        if label is None and path.parent.name:
            unusable.add("in a folder that is not an ImageNet class", named.parent)
        elif label is None:
            like = " nor named like ILSVRC2012_val_00000001.JPEG" if short == "val" else ""
            unusable.add(f"neither in a folder of their class{like}", named)
        elif image is None:
            unusable.add("unreadable, truncated or damaged", named)
        elif key in seen:
            unusable.add("there twice", f"{named} and {place.name / seen[key]}")
        else:
            seen[key] = path
            if doubtful:
                unusable.doubtful.append(str(named))
            record = {"file_name": path.name, "image": io.BytesIO(image), "label": label}
            yield key, record
    if empty:
        raise InputError(f"{place} holds no images (class/name.JPEG, or name.JPEG for val).")
    if not seen:
        unusable.refuse(place.parent)
    if len(seen) != COUNTS[short]:
        logging.warning("%s: %d images, where ImageNet has %d", place, len(seen), COUNTS[short])


def _images(place: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Images of a folder or tar file with their path in it; tar files within are as folders."""
    left_out: list[PurePosixPath] = []
    for path, content in _folder_files(place) if place.is_dir() else _tar_files(place):
        if any(map(_LEFT_BEHIND.fullmatch, path.parts)):
            continue
        if path.suffix.lower() in _IMAGES:
            yield path, content
        else:
            left_out.append(path)
    if left_out:
        count = len(left_out)
        logging.warning("%s: left out what is no image (%d, as %s)", place, count, left_out[0])


def _folder_files(folder: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    for parent, below, names in os.walk(folder, followlinks=True):
        below.sort()
        for name in sorted(names):
            path = Path(parent, name)
            inside = PurePosixPath(path.relative_to(folder))
            if _is_tar(inside):
                with path.open("rb") as file:
                    yield from _within(inside, _members(path, file))
            else:
                yield inside, _content(path) if path.suffix.lower() in _IMAGES else b""


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # Such as a link to nowhere; no image either, and so it is named.


def _tar_files(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    with path.open("rb") as file:
        for name, content in _members(path, file):
            if _is_tar(name):
                yield from _within(name, _members(path / name, io.BytesIO(content)))
            else:
                yield name, content


def _is_tar(path: PurePosixPath) -> bool:
    return path.name.endswith(_TAR_ENDINGS) and not path.name.startswith(".")


def _within(
    tar: PurePosixPath, members: Iterator[tuple[PurePosixPath, bytes]]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    for name, content in members:
        yield tar / name, content


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[PurePosixPath, bytes]]:
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                # What a link leads to may have gone by already; it is named as unreadable.
                stream = archive.extractfile(member) if member.isfile() else None
                if not member.isdir():
                    content = stream.read() if stream is not None else b""
                    yield PurePosixPath(member.name.lstrip("/")), content
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is not a whole tar file ({error}): fetch it again.") from error


def _as_rgb_jpegs(
    images: Iterator[tuple[PurePosixPath, bytes]],
) -> Iterator[tuple[PurePosixPath, _Checked]]:
    """Each image checked and, if need be, encoded anew.

    Every one is decoded, for nothing less finds what is cut off; on all cores, a few at a time.
    """
    workers = os.cpu_count() or 1
    waiting: deque[tuple[PurePosixPath, Future[_Checked]]] = deque()
    # OpenCV would speak of what is damaged, too, and name no file.
    level = opencv_logging.setLogLevel(opencv_logging.LOG_LEVEL_SILENT)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for path, content in images:
                waiting.append((path, pool.submit(_as_rgb_jpeg, path.name, content)))
                if len(waiting) > 4 * workers:
                    first, image = waiting.popleft()
                    yield first, image.result()
            for path, image in waiting:
                yield path, image.result()
    finally:
        opencv_logging.setLogLevel(level)


def _as_rgb_jpeg(name: str, content: bytes) -> _Checked:
    """The file as it is, except the few that are CMYK or no JPEG, which TFDS converts too."""
    jpeg = content[:2] == b"\xff\xd8"
    if jpeg and name not in CMYK_IMAGES and is_flawless(content):
        return content, False
    rgb = decode(content)
    if rgb is None:
        return None, False
    if jpeg and name not in CMYK_IMAGES:
        return content, True
    bgr = np.ascontiguousarray(rgb[:, :, ::-1])
    encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
    return encoded, False
