"""A look inside a run's spiking network: single images, neuron by neuron, and a page of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tcl_jax import progress, provenance
from tcl_jax.cluster import here
from tcl_jax.errors import InputError
from tcl_jax.graph import Graph, shapes
from tcl_jax.graph import artifact as artifacts
from tcl_jax.record import whole, write_json
from tcl_jax.report.page import Picture, Section, Table
from tcl_jax.report.trace_plots import plot_traces
from tcl_jax.runs.converted import Converted, open_converted
from tcl_jax.runs.delay import AutoDelay, with_delay
from tcl_jax.runs.page import write_run_page
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.dynamics import State
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import classify, run
from tcl_jax.simulation.traces import find_layers, traced_layers

SHOWN = 8
"""Layers at most where none are named: the first, the last, and others evenly between."""
_ROOM = 2**30
"""Bytes that traces may take."""


class Inspected(NamedTuple):
    """What was found.

    Attributes:
        images: a record of each: its number, label and class, and the t from which on it had that.
        layers: full names.
        table: the same of the images, for people.
        page: `report.html`.
    """

    images: list[dict[str, Any]]
    layers: tuple[str, ...]
    table: Table
    page: Path


def inspect_run(
    folder: Path,
    numbers: Sequence[int] = (0, 1, 2),
    timesteps: int = 100,
    settings: Simulation | AutoDelay = PAPER,
    *,
    layers: Sequence[str] | None = None,
    snn: str = "snn",
    output: Path | None = None,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
) -> Inspected:
    """Simulate some test images, keep what their neurons did, and show it.

    Writes `traces.npz` (images, labels, classes ``[t, image]``, and of each layer ``NAME/spikes``
    and ``NAME/potential`` ``[t, image, ...]``, in thresholds), `inspect.json`, a picture of each
    image, and `report.html`, which holds these and all else that there is of the run.

    Args:
        folder: the run's folder.
        numbers: of test images, from 0.
        timesteps: number of steps T.
        settings: neurons, coding, readout and their numbers; the delay may be left to be found.
        layers: as `tcl_jax.simulation.find_layers` takes them; some of all when None.
        snn: name of the spiking network within the run's folder.
        output: folder to write to; ``inspect`` beside the results when None.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.

    Raises:
        InputError: a number is out of range, there is no such layer or spiking network, or traces
            would take more than a GiB.
    """
    check_numbers(timesteps, settings)
    converted = open_converted(folder, snn, data_dir=data_dir, raw_dir=raw_dir)
    graph, about = converted.artifact.graph, converted.artifact.about
    total = converted.dataset.info.num_test
    if not numbers:
        raise InputError("names no image: give one or more test images, by number", "image")
    if wrong := [n for n in numbers if not 0 <= n < total]:
        raise InputError(f"must be from 0 to {total - 1}, got {wrong[0]}", "image")
    numbers = list(dict.fromkeys(numbers))
    names = _some(graph) if layers is None else find_layers(graph, layers)
    _check_room(graph, names, timesteps, len(numbers))
    automatic = isinstance(settings, AutoDelay)
    settings = with_delay(settings, converted, timesteps, batch_size=100, cluster=here(1))
    x, labels = _images(converted, numbers)

    def observe(state: State, spikes: dict[str, Array], t: Array) -> Any:
        of_layers = traced_layers(graph, names, settings, state, spikes)
        return of_layers, classify(graph, state, settings)

    with progress.bar("simulating", total=len(numbers), unit="images") as done:
        found, classes = run(graph, x, timesteps, observe, settings)[1]
        arrays = {n: (np.asarray(t.spikes), np.asarray(t.potential)) for n, t in found.items()}
        done(len(numbers))
    classes = np.asarray(classes)
    output = output or converted.results / "inspect"
    output.mkdir(parents=True, exist_ok=True)
    _write_arrays(output / "traces.npz", arrays, np.asarray(x), labels, classes, numbers)
    fingerprint = artifacts.fingerprint(converted.place) or ""
    seen = [
        {
            "image": n,
            "label": int(labels[i]),
            "class": int(classes[-1, i]),
            "settled_at": _settled(of),
        }
        for i, (n, of) in enumerate(zip(numbers, classes.T, strict=True))
    ]
    record = {
        "timesteps": timesteps,
        "images": seen,
        "layers": list(names),
        "rates": {name: spikes.mean().item() for name, (spikes, _) in arrays.items()},
        **settings.said(),
        **({"delay_estimated": True} if automatic else {}),
        "snn": snn,
        "norm": about["norm"],
        "network": about["network"],
        "data": about["data"]["name"],
        "snn_fingerprint": fingerprint,
        **provenance.describe(),
    }
    pictures = []
    for i, of in enumerate(seen):
        path = output / f"image-{of['image']}.png"
        title = f"test image {of['image']}: label {of['label']}, class {of['class']} at T = "
        one = {n: (spikes[:, i], potential[:, i]) for n, (spikes, potential) in arrays.items()}
        plot_traces(one, np.asarray(x[i]), path, title=f"{title}{timesteps}")
        pictures.append(
            Picture(path, f"spikes, membrane potentials and rates, image {of['image']}")
        )
    write_json(output / "inspect.json", record)
    rows = [[str(value) for value in of.values()] for of in seen]
    table = Table(["test image", "label", f"class at T = {timesteps}", "settled at t ="], rows)
    section = Section("Single images", [_sentence(timesteps, settings)], [table], pictures)
    page = write_run_page(converted, fingerprint, section, output)
    return Inspected(seen, names, table, page)


def _some(graph: Graph) -> tuple[str, ...]:
    names = [n.name for n in graph.spiking]
    at = np.linspace(0, len(names) - 1, min(SHOWN, len(names))).round().astype(int)
    return tuple(names[i] for i in at)


def _check_room(graph: Graph, names: Sequence[str], timesteps: int, images: int) -> None:
    of = shapes(graph)
    neurons = sum(int(np.prod(of[name])) for name in names)
    needed = neurons * timesteps * images * 2 * 4
    if needed > _ROOM:
        raise InputError(
            f"what {neurons:,} neurons do in {timesteps} steps for {images} images takes "
            f"{needed / _ROOM:.1f} GiB, and 1 is the most: give fewer layers, images or timesteps"
        )


def _images(converted: Converted, numbers: Sequence[int]) -> tuple[Array, np.ndarray]:
    batches = [next(converted.batches("test", 1, first=n, limit=1)) for n in numbers]
    x = jnp.concatenate([jnp.asarray(batch["image"]) for batch in batches])
    return x, np.concatenate([np.asarray(batch["label"]) for batch in batches])


def _settled(classes: np.ndarray) -> int:
    """The first t from which on the class is the last one."""
    other = np.flatnonzero(classes != classes[-1])
    return int(other[-1]) + 2 if other.size else 1


def _write_arrays(
    path: Path,
    found: dict[str, tuple[np.ndarray, np.ndarray]],
    images: np.ndarray,
    labels: np.ndarray,
    classes: np.ndarray,
    numbers: Sequence[int],
) -> None:
    arrays = {"images": images, "labels": labels, "classes": classes, "numbers": np.array(numbers)}
    for name, (spikes, potential) in found.items():
        arrays |= {f"{name}/spikes": spikes, f"{name}/potential": potential}
    with whole(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def _sentence(timesteps: int, settings: Simulation) -> str:
    said = settings.said()
    return (
        f"{timesteps} steps, {said['neurons']} neurons, {said['coding']} input, {said['readout']} "
        "readout.  Potentials are in thresholds, after each step; marks above are spikes."
    )
