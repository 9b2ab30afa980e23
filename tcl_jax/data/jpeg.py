"""Splits of photographs, decoded when they are asked for."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, Int32, UInt8

from tcl_jax.data.augment import centre_crop_and_resize, random_resized_crop_and_flip
from tcl_jax.data.dataset import Element
from tcl_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class _Photograph:
    """One record, still encoded.

    Attributes:
        encoded: The JPEG file.
        label: Its label.
        place: The record, in words, for messages.
    """

    encoded: bytes
    label: int
    place: str

    def decode(self) -> UInt8[np.ndarray, "h w 3"]:
        """The whole image."""
        image = decode(self.encoded)
        if image is None:
            raise InputError(
                f"The image {self.place} is truncated or damaged: delete that folder and prepare "
                "it again, which names damaged raw files."
            )
        return image


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
        return _stack(
            (centre_crop_and_resize(photograph.decode(), self.size), photograph.label)
            for photograph in self._photographs(indices)
        )

    def random_crops(
        self, indices: Int[np.ndarray, " b"], rngs: Iterable[np.random.Generator]
    ) -> tuple[UInt8[np.ndarray, "b h w 3"], Int32[np.ndarray, " b"]]:
        """Random resized crops of the photographs at `indices`, each with its own generator.

        Raises:
            InputError: An image is damaged.
        """
        return _stack(
            (random_resized_crop_and_flip(photograph.decode(), rng, self.size), photograph.label)
            for photograph, rng in zip(self._photographs(indices), rngs, strict=True)
        )

    def _photographs(self, indices: np.ndarray) -> list[_Photograph]:
        """The records, read together and left encoded."""
        records = self.records.__getitems__([int(index) for index in indices])
        return [
            _Photograph(
                record["image"],
                int(record["label"]),
                f"record {index} ({record['file_name'].decode()}) of {self.place}",
            )
            for index, record in zip(indices, records, strict=True)
        ]


def _stack(elements: Iterable[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*elements, strict=True)
    return np.stack(images), np.array(labels, np.int32)


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
