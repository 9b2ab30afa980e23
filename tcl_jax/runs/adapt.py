"""Adaptive latency of a run: calibrated on held-out images, measured on test images."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tcl_jax import progress, provenance
from tcl_jax.cluster import Cluster, everywhere
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph import precision
from tcl_jax.record import write_json
from tcl_jax.report.plots import plot_adaptive
from tcl_jax.runs.batches import Split, part
from tcl_jax.runs.converted import open_converted
from tcl_jax.runs.delay import AutoDelay, with_delay
from tcl_jax.runs.simulate import check_numbers
from tcl_jax.simulation.adaptive import (
    Decisions,
    Record,
    calibrate,
    check_calibration,
    check_coding,
    decide,
    record,
)
from tcl_jax.simulation.latency import latency_curve
from tcl_jax.simulation.lowering import lower
from tcl_jax.simulation.margins import CHARGE, Margin
from tcl_jax.simulation.settings import PAPER, Simulation

_PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
_T = TypeVar("_T")
_Found = TypeVar("_Found", Record, Decisions)


def adapt_run(
    folder: Path,
    timesteps: int,
    settings: Simulation | AutoDelay = PAPER,
    margin: Margin = CHARGE,
    *,
    max_loss: float,
    snn: str = "snn",
    output: Path | None = None,
    images: int | None = None,
    calibration_images: int = 2000,
    batch_size: int = 100,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
    cluster: Cluster | None = None,
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
        margin: what of the output neurons is compared.
        max_loss: accuracy that may be lost against fixed T, in points.
        snn: name of the spiking network within the run's folder.
        output: folder to write to; the run's for ``snn``, else the spiking network's.
        images: number of test images; None takes all.
        calibration_images: number of training images, from the last.
        batch_size: images at a time, over all devices of one process.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.
        cluster: as `simulate_run` takes it.

    Returns:
        What `adaptive.json` holds.

    Raises:
        InputError: a number is out of range, so few calibration images cannot tell the loss, the
            coding is not analog, or there is no such spiking network or it is damaged.
    """
    counts = {"batch_size": batch_size, "images": images, "calibration_images": calibration_images}
    check_numbers(timesteps, settings, **counts)
    check_coding(settings.settings if isinstance(settings, AutoDelay) else settings)
    everyone = cluster or everywhere()
    data = {"data_dir": data_dir, "raw_dir": raw_dir}
    converted = everyone.first(lambda: open_converted(folder, snn, **data))
    artifact, about, info = converted.artifact, converted.artifact.about, converted.dataset.info
    fingerprint = artifacts.fingerprint(converted.place)
    held = min(calibration_images, info.num_train)
    total = min(images or info.num_test, info.num_test)
    check_calibration(max_loss / 100, held)
    output = output or converted.results
    own = everyone.own
    own.check_batch_size(batch_size)
    same = {"timesteps": timesteps, "images": total, "max_loss": max_loss, **counts}
    everyone.check_same(network=fingerprint, margin=margin, **(same | settings.said()))
    everyone.alone(lambda: output.mkdir(parents=True, exist_ok=True))
    of_settings = settings_fingerprint(
        timesteps,
        settings,
        **({} if margin == CHARGE else {"margin": str(margin)}),
        max_loss=max_loss,
        images=images,
        calibration_images=calibration_images,
    )
    automatic = isinstance(settings, AutoDelay)
    how = with_delay(settings, converted, timesteps, batch_size=batch_size, cluster=everyone)
    graph = own.replicate(lower(artifact.graph, neurons=how.neurons))

    def of_all(
        what: str, split: Split, start: int, images: int, find: Callable[[Any, Any], _Found]
    ) -> _Found:
        """What all processes find, each in its part of so many images from the start on."""
        first, limit = part(images, batch_size, everyone)
        which: dict[str, Any] = {"first": start + first, "limit": limit, "cluster": own}
        batches = converted.batches(split, batch_size, **which)
        with progress.bar(what, total=limit, unit="images", shown=everyone.writes) as done:
            return _together(everyone.gather(find(batches, done) if limit else None))

    def recorded(batches: Any, done: Any) -> Record:
        return record(graph, batches, timesteps, how, margin, done=done)

    def adaptive(bound: float, batches: Any, done: Any) -> Decisions:
        size: dict[str, Any] = {"slots": batch_size, "cluster": own, "done": done}
        return decide(graph, batches, bound, timesteps, how, margin, **size)

    def seconds_of(fixed_time: int) -> float:
        """Of all test images at a fixed T, compiled before."""
        first, limit = part(total, batch_size, everyone)

        def simulated(images: int) -> None:
            which: dict[str, Any] = {"first": first, "limit": images, "cluster": own}
            batches = converted.batches("test", batch_size, **which)
            latency_curve(graph, batches, fixed_time, how, cluster=everyone)

        simulated(min(batch_size, limit))
        return _timed(lambda: simulated(limit))[1]

    # Norm-factors are read from the first ones.
    held_out = of_all("calibrating", "train", info.num_train - held, held, recorded)
    bound = calibrate(held_out, max_loss / 100)
    fixed, fixed_seconds = _timed(lambda: of_all("at fixed T", "test", 0, total, recorded))
    one = converted.batches("test", batch_size, limit=min(batch_size, total), cluster=own)
    adaptive(bound, one, lambda images: None)  # compiles
    decided = partial(adaptive, bound)
    found, seconds = _timed(lambda: of_all("adaptively", "test", 0, total, decided))

    expected, calibrated = fixed.stopped(bound), held_out.stopped(bound)
    differ = (expected.classes != found.classes) | (expected.steps != found.steps)
    nearest = max(1, round(found.mean_steps))
    as_good = np.flatnonzero(fixed.accuracy >= found.accuracy)
    of_fixed = {
        t: {"T": t, "accuracy": float(fixed.accuracy[t - 1]), "seconds": seconds_of(t)}
        for t in sorted({nearest, *(as_good[:1] + 1).tolist()})
    }
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
        "accuracy_fixed_at_mean": of_fixed[nearest],
        "fixed_as_accurate": of_fixed[as_good[0] + 1] if as_good.size else None,
        "mean_steps": found.mean_steps,
        "percentiles": {str(p): float(np.percentile(found.steps, p)) for p in _PERCENTILES},
        "stopped_at": np.bincount(found.steps, minlength=timesteps + 1)[1:].tolist(),
        "seconds": {"fixed": fixed_seconds, "adaptive": seconds},
        "differ_from_fixed_simulation": int(differ.sum()),
        **how.said(),
        **({"delay_estimated": True} if automatic else {}),
        "margin": str(margin),
        "batch_size": batch_size,
        "snn": snn,
        "norm": about["norm"],
        "weights": about.get("weights", "float32"),
        "network": about["network"],
        "data": about["data"]["name"],
        "settings": of_settings,
        "snn_fingerprint": fingerprint,
        **precision(artifact.graph),
        **provenance.describe(),
    }

    def write() -> None:
        write_json(output / "adaptive.json", content)
        plot_adaptive(
            content["stopped_at"],
            fixed.accuracy.tolist(),
            found.accuracy,
            output / "adaptive.png",
            title=f"{content['network']} on {content['data']}, {content['images']} test images",
        )

    everyone.alone(write)
    return content


def _together(parts: list[_Found | None]) -> _Found:
    """Of records, or decisions, of parts of the images in their order: the one of all of them."""
    known = [part for part in parts if part is not None]
    names = [field.name for field in dataclasses.fields(known[0])]
    return type(known[0])(
        **{name: np.concatenate([getattr(p, name) for p in known], -1) for name in names}
    )


def settings_fingerprint(timesteps: int, settings: Simulation | AutoDelay, **others: Any) -> str:
    """Of all that a record of adaptive latency depends on, beside the network."""
    free = settings.distinguished()
    del free["coding"]  # there is one
    return provenance.fingerprint(timesteps=timesteps, **free, **others)


def _timed(function: Callable[[], _T]) -> tuple[_T, float]:
    """Its result, which lies on the host, and seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start
