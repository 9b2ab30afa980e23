"""Random changes of training images, and the fixed crop of evaluation, in NumPy."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, UInt8


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
