"""Adaptive latency of a run: calibrated on held-out images, measured on test images."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from tcl_jax import cluster, progress, provenance
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph import precision
from tcl_jax.record import write_json
from tcl_jax.report.plots import plot_adaptive
from tcl_jax.runs.converted import open_converted
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.adaptive import (
    calibrate,
    check_calibration,
    check_coding,
    decide,
    record,
)
from tcl_jax.simulation.lowering import lower
from tcl_jax.simulation.settings import PAPER, Simulation

_PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
_T = TypeVar("_T")


def adapt_run(
    folder: Path,
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    max_loss: float,
    snn: str = "snn",
    output: Path | None = None,
    images: int | None = None,
    calibration_images: int = 2000,
    batch_size: int = 100,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
) -> dict[str, Any]:
    """Adaptive latency on test images, beside fixed T on the same ones.

    The bound on margins is calibrated on the last training images: test images decide nothing.
    Networks are surer of images that they were trained on, so that on others more accuracy may be
    lost than was allowed; what is written says how much.

    Writes `adaptive.json` and `adaptive.png`.

    Args:
        folder: the run's folder.
        timesteps: the longest latency T.
        settings: neurons, readout and their numbers; the coding is analog, for of spikes the time
            would count for each image on its own.
        max_loss: accuracy that may be lost against fixed T, in points.
        snn: name of the spiking network within the run's folder.
        output: folder to write to; the run's for ``snn``, else the spiking network's.
        images: number of test images; None takes all.
        calibration_images: number of training images, from the last.
        batch_size: images at a time, over all devices.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.

    Returns:
        What `adaptive.json` holds.

    Raises:
        InputError: a number is out of range, so few calibration images cannot tell the loss, the
            coding is not analog, or there is no such spiking network or it is damaged.
    """
    counts = {"batch_size": batch_size, "images": images, "calibration_images": calibration_images}
    check_numbers(timesteps, settings.delay, **counts)
    check_coding(settings)
    converted = open_converted(folder, snn, data_dir=data_dir, raw_dir=raw_dir)
    artifact, about, info = converted.artifact, converted.artifact.about, converted.dataset.info
    fingerprint = artifacts.fingerprint(converted.place)
    held = min(calibration_images, info.num_train)
    total = min(images or info.num_test, info.num_test)
    check_calibration(max_loss / 100, held)
    output = output or converted.results
    output.mkdir(parents=True, exist_ok=True)
    mesh = cluster.data_mesh()
    cluster.check_batch_size(batch_size, mesh)
    graph = cluster.replicate(lower(artifact.graph), mesh)

    def tested() -> Iterator[dict[str, Any]]:
        return converted.batches("test", batch_size, limit=total, mesh=mesh)

    def adaptive(batches: Iterator[dict[str, Any]], bound: float, **more: Any) -> Any:
        def place(tree: Any) -> Any:
            return cluster.shard_batch(jax.tree.map(np.asarray, tree), mesh)

        return decide(
            graph, batches, bound, timesteps, settings, slots=batch_size, place=place, **more
        )

    with progress.bar("calibrating", total=held, unit="images") as done:
        # Norm-factors are read from the first ones.
        batches = converted.batches("train", batch_size, first=info.num_train - held, mesh=mesh)
        held_out = record(graph, batches, timesteps, settings, done=done)
    bound = calibrate(held_out, max_loss / 100)
    with progress.bar("at fixed T", total=total, unit="images") as done:
        fixed, fixed_seconds = _timed(
            lambda: record(graph, tested(), timesteps, settings, done=done)
        )
    adaptive(islice(tested(), 1), -np.inf)  # compiles
    with progress.bar("adaptively", total=total, unit="images") as done:
        found, seconds = _timed(lambda: adaptive(tested(), bound, done=done))

    expected, calibrated = fixed.stopped(bound), held_out.stopped(bound)
    differ = (expected.classes != found.classes) | (expected.steps != found.steps)
    nearest = max(1, round(found.mean_steps))
    content = {
        "timesteps": timesteps,
        "images": found.labels.size,
        "max_loss_points": max_loss,
        "bound": bound if np.isfinite(bound) else None,
        "held_out": {
            "images": held_out.labels.size,
            "accuracy_fixed": float(held_out.accuracy[-1]),
            "accuracy": calibrated.accuracy,
            "mean_steps": calibrated.mean_steps,
        },
        "accuracy": found.accuracy,
        "accuracy_fixed": float(fixed.accuracy[-1]),
        "accuracy_fixed_at_mean": {"T": nearest, "accuracy": float(fixed.accuracy[nearest - 1])},
        "mean_steps": found.mean_steps,
        "percentiles": {str(p): float(np.percentile(found.steps, p)) for p in _PERCENTILES},
        "stopped_at": np.bincount(found.steps, minlength=timesteps + 1)[1:].tolist(),
        "seconds": {"fixed": fixed_seconds, "adaptive": seconds},
        "differ_from_fixed_simulation": int(differ.sum()),
        **settings.said(),
        "batch_size": batch_size,
        "snn": snn,
        "norm": about["norm"],
        "network": about["network"],
        "data": about["data"]["name"],
        "settings": settings_fingerprint(
            timesteps,
            settings,
            max_loss=max_loss,
            images=images,
            calibration_images=calibration_images,
        ),
        "snn_fingerprint": fingerprint,
        **precision(artifact.graph),
        **provenance.describe(),
    }
    write_json(output / "adaptive.json", content)
    plot_adaptive(
        content["stopped_at"],
        fixed.accuracy.tolist(),
        found.accuracy,
        output / "adaptive.png",
        title=f"{content['network']} on {content['data']}, {content['images']} test images",
    )
    return content


def settings_fingerprint(timesteps: int, settings: Simulation, **others: Any) -> str:
    """Of all that a record of adaptive latency depends on, beside the network."""
    free = settings.distinguished()
    del free["coding"]  # there is one
    return provenance.fingerprint(timesteps=timesteps, **free, **others)


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    """Its result, which lies on the host, and seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start
