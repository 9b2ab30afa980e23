"""Splits of photographs, decoded when they are asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Int, Int32, UInt8

from tcl_jax.data.augment import Rectangle, ResizedCrops, central_square, resize
from tcl_jax.data.dataset import Element
from tcl_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class JpegSource:
    """A split of photographs of any size; as elements they are cropped for evaluation.

    Attributes:
        records: Random access to records with `image` (encoded), `label` and `file_name`.
        place: Where the records lie, for messages.
        size: Height and width of the elements.
    """

    records: Any
    place: str
    size: int

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int, /) -> Element:
        image, label = self.gather(np.array([index]))
        return {"image": image[0], "label": int(label[0])}

    def gather(
        self, indices: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b h w 3"], Int32[np.ndarray, " b"]]:
        """The elements at `indices`, as two arrays.

        Raises:
            InputError: An image is damaged.
        """
        images, labels = self._empty(len(indices))
        for row, record in enumerate(self._records(indices)):
            images[row] = self._cut(record, indices[row], central_square)
            labels[row] = record["label"]
        return images, labels

    def random_crops(
        self, indices: Int[np.ndarray, " b"], crops: ResizedCrops
    ) -> tuple[UInt8[np.ndarray, "b h w 3"], Int32[np.ndarray, " b"]]:
        """Random resized crops of the photographs at `indices`, some mirrored.

        Raises:
            InputError: An image is damaged.
        """
        images, labels = self._empty(len(indices))
        for row, record in enumerate(self._records(indices)):
            image = self._cut(record, indices[row], partial(crops.rectangle, row))
            images[row] = image[:, ::-1] if crops.mirrored[row] else image
            labels[row] = record["label"]
        return images, labels

    def _empty(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.empty((count, self.size, self.size, 3), np.uint8), np.empty(count, np.int32)

    def _records(self, indices: np.ndarray) -> list[dict[str, Any]]:
        """Read together, and still encoded."""
        found: list[dict[str, Any]] = self.records.__getitems__([int(index) for index in indices])
        return found

    def _cut(
        self, record: dict[str, Any], index: int, part: Callable[[int, int], Rectangle]
    ) -> UInt8[np.ndarray, "h w 3"]:
        image = decode_part(record["image"], part, self.size)
        if image is None:
            raise InputError(
                f"The image record {index} ({record['file_name'].decode()}) of {self.place} is "
                "truncated or damaged: delete that folder and prepare it again, which names "
                "damaged raw files."
            )
        return image


def decode_part(
    encoded: bytes, part: Callable[[int, int], Rectangle], size: int
) -> UInt8[np.ndarray, "size size 3"] | None:
    """Decode a part of an image, resized to a square.

    A JPEG of which the part has at least twice as many pixels in a row, and in a column, as the
    square is decoded at the least size (1/2, 3/8, 1/4 or 1/8) where it has no fewer: in less time,
    and with less aliasing, than bilinear interpolation of the whole has.

    Args:
        encoded: The file.
        part: What is wanted of an image of some height and width.
        size: Height and width of the square.

    Returns:
        The square, or None where the image is truncated or damaged.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
        rectangle = part(height, width)
        image = simplejpeg.decode_jpeg(
            encoded,
            min_height=math.ceil(height * size / rectangle.height),
            min_width=math.ceil(width * size / rectangle.width),
            min_factor=2,
        )
    except ValueError:  # no JPEG, or one that is not quite as it should be
        image = decode(encoded)
        if image is None:
            return None
        height, width = image.shape[:2]
        rectangle = part(height, width)
    return resize(rectangle.scaled((height, width), image.shape[:2]).of(image), size)


def is_flawless(encoded: bytes) -> bool:
    """Whether a file is a JPEG in which libjpeg finds nothing wrong or left over.

    Of files in which it does, some are whole: `decode` gives those.
    """
    try:
        simplejpeg.decode_jpeg(encoded)
    except ValueError:
        return False
    return True


def decode(encoded: bytes) -> UInt8[np.ndarray, "h w 3"] | None:
    """Decode to RGB, ignoring the camera's orientation as ImageNet's other readers do.

    Args:
        encoded: The file, a JPEG or of another kind.

    Returns:
        The image, or None where it is truncated or damaged.
    """
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    # OpenCV does not raise, except on no bytes at all.
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
