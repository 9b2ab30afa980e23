"""A converted network, opened with its data: all that simulating or reporting it needs."""

import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from tcl_jax import data
from tcl_jax.errors import InputError
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph.artifact import Artifact
from tcl_jax.runs.batches import Split, standardised

LAYER_REPORT = ("report.json", "activations.png", "rates.png", "errors.png")
"""Files of a layer report, in a spiking network's folder."""
RESULTS = (
    *("curve.csv", "curve.png", "summary.json"),
    *("energy.csv", "energy.png", "energy.json"),
    *("adaptive.png", "adaptive.json"),
    "inspect",
)
"""Files and folders of a simulation's results, in `results_folder`."""
SWEEP = ("sweep.csv", "sweep.png")
"""Those of a sweep, which may be over several spiking networks, in the run's folder."""

FEW_CLASSES = 10
"""With more of them, top-5 accuracy stands beside top-1, as the literature has it."""


def results_folder(folder: Path, snn: str) -> Path:
    """Where results of a run's spiking network go: the run's folder for ``snn``, else its own."""
    return folder if snn == "snn" else folder / snn


@dataclass(frozen=True)
class Converted:
    """A run's spiking network, and its data.

    Attributes:
        folder: the run's.  Of what was trained there nothing is read.
        snn: name of the spiking network, a folder within.
        artifact: the spiking network, and what is known of its conversion.
        dataset: the images that the network was trained for.
    """

    folder: Path
    snn: str
    artifact: Artifact
    dataset: data.Dataset

    @property
    def place(self) -> Path:
        """The spiking network's folder."""
        return self.folder / self.snn

    @property
    def results(self) -> Path:
        """Where results of simulations go."""
        return results_folder(self.folder, self.snn)

    def batches(self, split: Split, batch_size: int, **which: Any) -> Iterator[dict[str, Any]]:
        """Images of a split, as `standardised` has them."""
        return standardised(self.dataset, self.artifact.standardize, split, batch_size, **which)

    @property
    def tops(self) -> tuple[int, ...]:
        """Among how many of the first classes a right one may be: top-1, or top-1 and top-5."""
        return tops(self.dataset.info.num_classes)

    def ann_accuracy(self, images: int, top: int = 1) -> dict[str, float]:
        """The trained network's accuracy, by the type that it computes in, float32 first.

        Args:
            images: the number of test images, from the first.
            top: of `tops`.  Of more than one there is none where an older version converted.

        Raises:
            InputError: it was evaluated on fewer when it was converted.
        """
        known = self.artifact.about["ann"]
        if images > known["images"]:
            raise InputError(
                f"the trained network was evaluated on {known['images']} test images when it was "
                f"converted, and {images} are to be compared: give images={known['images']}, or "
                "convert it again with more"
            )
        rights = known["right"] if top == 1 else known.get(f"right_top{top}", {})
        return {
            dtype: float(_unpacked(right, known["images"])[:images].mean())
            for dtype, right in rights.items()
        }


def tops(classes: int) -> tuple[int, ...]:
    """Of a network of so many classes, as `Converted.tops`."""
    return (1, 5) if classes > FEW_CLASSES else (1,)


def open_converted(
    folder: Path, snn: str, *, data_dir: Path | None = None, raw_dir: Path | None = None
) -> Converted:
    """Open a run's spiking network.

    Args:
        folder: the run's folder; of what was trained there nothing needs to be left.
        snn: name of the spiking network within it.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.

    Raises:
        InputError: there is no such spiking network or it is damaged, it does not say what it was
            converted from, or the data is missing.
    """
    folder = Path(folder)
    artifact = load_converted(folder, snn)
    dataset = data.load(data_dir=data_dir, raw_dir=raw_dir, **artifact.about["data"])
    return Converted(folder, snn, artifact, dataset)


def load_converted(folder: Path, snn: str) -> Artifact:
    """A run's spiking network alone; see `open_converted`."""
    artifact = artifacts.load(folder / snn)
    if not {"norm", "data", "ann"} <= artifact.about.keys():
        raise InputError(
            f"{folder / snn} does not say what it was converted from, or an older version did it: "
            "convert the run again with convert.py"
        )
    return artifact


def spiking_networks(folder: Path) -> dict[str, dict[str, Any]]:
    """What a run's spiking networks say about themselves, by name; no array is read."""
    found = {}
    for path in sorted(Path(folder).glob(f"*/{artifacts.GRAPH}")):
        with suppress(ValueError, KeyError, TypeError):  # what is damaged is told when it is opened
            found[path.parent.name] = dict(json.loads(path.read_bytes())["about"])
    return found


def packed(right: Bool[np.ndarray, " n"]) -> str:
    """Which images a network gets right, as text of a sixth of a letter for each.

    >>> import numpy as np
    >>> packed(np.array([True, False, True, True]))
    'sA=='
    """
    return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def _unpacked(text: str, count: int) -> Bool[np.ndarray, " n"]:
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.unpackbits(bits, count=count).astype(bool)
