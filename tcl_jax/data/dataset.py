"""What a data set is: a description, and two splits that can be indexed."""

from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np
from jaxtyping import Int, Int32, UInt8


@dataclass(frozen=True)
class DataInfo:
    """The facts about a data set that networks and pipelines need.

    Attributes:
        name: The name that `load` takes.
        image_shape: (height, width, channels) as delivered to the network.
        num_classes: Number of classes; labels run from 0.
        num_train: Number of training examples.
        num_test: Number of test examples.
        mean: Per channel, of the training pixels scaled to [0, 1], before any padding.
        std: Likewise the standard deviation.
        mirrors: Whether a mirrored image still belongs to its class (false for digits).
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrors: bool = True


class Element(TypedDict):
    """One example."""

    image: UInt8[np.ndarray, "h w c"]
    label: int


class Source(Protocol):
    """A split: random access to its elements."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Element: ...

    def gather(
        self, indices: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]:
        """Copies of the images and labels at `indices`, as two arrays."""
        ...


@dataclass(frozen=True, eq=False)
class ArraySource:
    """A split held in memory, for data sets of small images.

    Attributes:
        images: All images.
        labels: Their labels.
    """

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Element:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def gather(
        self, indices: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b h w c"], Int32[np.ndarray, " b"]]:
        """Copies of the images and labels at `indices`, as two arrays."""
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class Dataset:
    """A data set: its description and its splits.

    Attributes:
        info: The description.
        train: Training examples.
        test: Test examples; ImageNet's validation split stands here.
    """

    info: DataInfo
    train: Source
    test: Source
