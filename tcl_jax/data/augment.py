"""Random changes of training images, and the fixed crop of evaluation, in NumPy."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

# Of a random rectangle: the part of the photograph's area, width by height, and how many are
# drawn before the largest one is taken.
_AREAS = (0.08, 1.0)
_ASPECTS = (3 / 4, 4 / 3)
_ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class Crops:
    """Random choices for a batch of small images.

    They are drawn apart from their use, so that every process can draw for the whole batch and
    use its own part: the pixels do not depend on the number of processes.

    Attributes:
        corner: Top and left of each crop, in the padded image.
        mirrored: Whether to mirror each image.
    """

    corner: Int64[np.ndarray, "b 2"]
    mirrored: Bool[np.ndarray, " b"]

    def __getitem__(self, rows: slice) -> "Crops":
        return Crops(self.corner[rows], self.mirrored[rows])


def draw_crops(rng: np.random.Generator, count: int, *, pad: int, mirrors: bool) -> Crops:
    """Draw the choices for `crop_and_flip`.

    Args:
        rng: Source of randomness.
        count: Number of images.
        pad: Margin of the crops.
        mirrors: Whether images may be mirrored (each is, with probability 1/2).

    Returns:
        The choices.
    """
    corner = rng.integers(0, 2 * pad + 1, (count, 2))
    mirrored = rng.random(count) < 0.5
    return Crops(corner, mirrored if mirrors else np.zeros(count, bool))


def crop_and_flip(
    images: UInt8[np.ndarray, "b h w c"], crops: Crops, *, pad: int
) -> UInt8[np.ndarray, "b h w c"]:
    """Pad with zeros on all sides, cut out the original size, and mirror some.

    Args:
        images: Small images.
        crops: What to do with each, from `draw_crops` with the same `pad`.
        pad: Margin on each side.

    Returns:
        Images of the same size.
    """
    _, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    result = np.empty_like(images)
    for row, ((top, left), mirrored) in enumerate(zip(crops.corner, crops.mirrored, strict=True)):
        cut = padded[row, top : top + height, left : left + width]
        result[row] = cut[:, ::-1] if mirrored else cut
    return result


class Rectangle(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, old: tuple[int, int], new: tuple[int, int]) -> "Rectangle":
        """The same part, and what of a pixel it touches, where the whole image has another size.

        Args:
            old: Height and width of the image that this is a part of.
            new: Of the other.

        Returns:
            The part of the other.
        """
        (height, width), (new_height, new_width) = old, new
        top, left = self.top * new_height // height, self.left * new_width // width
        bottom = -(-(self.top + self.height) * new_height // height)
        right = -(-(self.left + self.width) * new_width // width)
        return Rectangle(top, left, bottom - top, right - left)

    def of(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "height width c"]:
        """A view of the part."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True, eq=False)
class ResizedCrops:
    """Random choices for a batch of photographs, drawn apart from their use as `Crops` are.

    Attributes:
        area: Of each attempt at a rectangle, as a fraction of the photograph's.
        aspect: Of each attempt, width by height.
        place: Where the rectangle lies, down and to the right, from 0 (at one end) to 1.
        mirrored: Whether to mirror each image.
    """

    area: Float64[np.ndarray, "b attempts"]
    aspect: Float64[np.ndarray, "b attempts"]
    place: Float64[np.ndarray, "b 2"]
    mirrored: Bool[np.ndarray, " b"]

    def __getitem__(self, rows: slice) -> "ResizedCrops":
        return ResizedCrops(
            self.area[rows], self.aspect[rows], self.place[rows], self.mirrored[rows]
        )

    def rectangle(self, row: int, height: int, width: int) -> Rectangle:
        """What is cut from one photograph.

        Args:
            row: Its number in the batch.
            height: Its height.
            width: Its width.

        Returns:
            The first attempt that fits; for a very long photograph, where none does, the largest
            rectangle whose aspect ratio is allowed.
        """
        for area, aspect in zip(self.area[row].tolist(), self.aspect[row].tolist(), strict=True):
            pixels = area * height * width
            cut_height = round(math.sqrt(pixels / aspect))
            cut_width = round(math.sqrt(pixels * aspect))
            if 0 < cut_height <= height and 0 < cut_width <= width:
                break
        else:
            cut_height = min(height, round(width / _ASPECTS[0]))
            cut_width = min(width, round(height * _ASPECTS[1]))
        down, right = self.place[row].tolist()
        top = int(down * (height - cut_height + 1))
        left = int(right * (width - cut_width + 1))
        return Rectangle(top, left, cut_height, cut_width)


def draw_resized_crops(rng: np.random.Generator, count: int) -> ResizedCrops:
    """Draw rectangles of 8 % to 100 % of an image's area, with aspect ratios from 3/4 to 4/3.

    Args:
        rng: Source of randomness.
        count: Number of photographs.

    Returns:
        The choices; half of the images are mirrored.

    References:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6.
    """
    narrow, wide = map(math.log, _ASPECTS)
    return ResizedCrops(
        area=rng.uniform(*_AREAS, (count, _ATTEMPTS)),
        aspect=np.exp(rng.uniform(narrow, wide, (count, _ATTEMPTS))),
        place=rng.random((count, 2)),
        mirrored=rng.random(count) < 0.5,
    )


def central_square(height: int, width: int) -> Rectangle:
    """The central square of 224/256 of the shorter side, which evaluation sees.

    This is the usual "resize to 256, crop 224", without making pixels that are then cut off.

    Args:
        height: Height of a photograph.
        width: Its width.

    Returns:
        The square.

    >>> central_square(375, 500)
    Rectangle(top=23, left=86, height=328, width=328)
    """
    side = max(1, round(min(height, width) * 224 / 256))
    return Rectangle((height - side) // 2, (width - side) // 2, side, side)


def resize(image: UInt8[np.ndarray, "h w c"], size: int) -> UInt8[np.ndarray, "size size c"]:
    """Resize to a square: bilinear, or averages where many pixels become one.

    Args:
        image: A part of a photograph.
        size: Height and width of the result.

    Returns:
        The square.
    """
    # Bilinear interpolation passes pixels over where more than two in a row become one. Averages
    # over areas do not, but take longer than it takes to decode a photograph of usual size.
    shrinks = image.shape[0] * image.shape[1] > 4 * size * size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=method)
