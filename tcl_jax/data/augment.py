"""Random changes of training images, and the fixed crop of evaluation, in NumPy."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8

# Rectangles drawn before a random resized crop settles for the largest one.
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


def random_resized_crop_and_flip(
    image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "size size c"]:
    """Cut out a random rectangle, resize it to a square, and mirror it half of the time.

    The rectangle has 8 % to 100 % of the area and an aspect ratio between 3/4 and 4/3.

    Args:
        image: A photograph of any size.
        rng: Source of randomness.
        size: Height and width of the result.

    Returns:
        The square.

    References:
        Szegedy et al., Going Deeper with Convolutions, 2015, section 6.
    """
    height, width = image.shape[:2]
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(0.08, 1.0)
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        cut_height, cut_width = round(np.sqrt(area / aspect)), round(np.sqrt(area * aspect))
        if 0 < cut_height <= height and 0 < cut_width <= width:
            break
    else:  # a very long image: the largest rectangle with an allowed aspect ratio
        cut_height = min(height, round(width * 4 / 3))
        cut_width = min(width, round(height * 4 / 3))
    top = rng.integers(0, height - cut_height + 1)
    left = rng.integers(0, width - cut_width + 1)
    cut = _resize(image[top : top + cut_height, left : left + cut_width], size, size)
    return cut[:, ::-1] if rng.random() < 0.5 else cut


def centre_crop_and_resize(
    image: UInt8[np.ndarray, "h w c"], size: int
) -> UInt8[np.ndarray, "size size c"]:
    """Cut out the central square of 224/256 of the shorter side and resize it.

    This is the usual "resize to 256, crop 224", without making pixels that are then cut off.

    Args:
        image: A photograph of any size.
        size: Height and width of the result.

    Returns:
        The square.
    """
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * 224 / 256))
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[top : top + side, left : left + side], size, size)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    # Averaging over areas avoids aliasing, but has no meaning when an image grows.
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)
