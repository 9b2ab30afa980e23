"""Simulation of a run's spiking network on its test images: table, curve, plot and summary."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from tcl_jax import progress, provenance
from tcl_jax.cluster import Cluster, everywhere
from tcl_jax.errors import InputError
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph import precision
from tcl_jax.record import whole, write_json
from tcl_jax.report.energy import write_energy
from tcl_jax.report.plots import plot_curves
from tcl_jax.runs.batches import check_counts, part
from tcl_jax.runs.converted import Converted, open_converted
from tcl_jax.runs.delay import AutoDelay, with_delay
from tcl_jax.simulation.energy import Activity, measure
from tcl_jax.simulation.latency import latency_curve
from tcl_jax.simulation.lowering import lower
from tcl_jax.simulation.operations import OperationCost
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import check_times
from tcl_jax.simulation.values import ErrorCurve, error_curve

PAPER_LATENCIES = (4, 8, 16, 20, 25, 30, 35, 50, 100, 150, 200, 250, 300, 350)
"""Latencies of the paper's Tables I and II, and some shorter ones."""


class Simulated(NamedTuple):
    """What a simulation found.

    Attributes:
        curve: accuracy at T = 1, 2, ...
        top5: top-5 accuracy, where there are many classes.
        summary: of `summary.json`.
        energy: of `energy.json`, where it was asked for.
        errors: of the values, where they were.
    """

    curve: Float[np.ndarray, " t"]
    top5: Float[np.ndarray, " t"] | None
    summary: dict[str, Any]
    energy: dict[str, Any] | None
    errors: ErrorCurve | None


class Curves(NamedTuple):
    """What one pass over the images finds.

    Attributes:
        accuracy: at T = 1, 2, ...
        top5: where there are many classes.
        activity: where operations were to be counted.
        errors: of the values, where they were to be compared.
    """

    accuracy: Float[np.ndarray, " t"]
    top5: Float[np.ndarray, " t"] | None
    activity: Activity | None = None
    errors: ErrorCurve | None = None


def simulate_run(
    folder: Path,
    timesteps: int,
    settings: Simulation | AutoDelay = PAPER,
    *,
    snn: str = "snn",
    output: Path | None = None,
    images: int | None = None,
    batch_size: int = 100,
    cost: OperationCost | None = None,
    error: bool = False,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
    cluster: Cluster | None = None,
) -> Simulated:
    """Accuracy against latency on test images, beside the trained network's on the same ones.

    What that gets right was found when it was converted, and stands in the spiking network: of the
    run nothing else is read.

    Writes `curve.csv` (T and accuracy, every T from 1), `curve.png` and `summary.json`; with a
    cost, `energy.json`, `energy.csv` and `energy.png`, too.  Of more than ten classes, top-5
    accuracy is there beside; and where they are compared, the error of the values.

    Args:
        folder: the run's folder.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers; the delay may be left to be found.
        snn: name of the spiking network within the run's folder.
        output: folder to write to; the run's for ``snn``, else the spiking network's.
        images: number of test images; None takes all.
        batch_size: images at a time, over all devices of one process.
        cost: of operations; None does not count them.
        error: whether the values are compared with those of the analog network of the same weights,
            in place of counting operations.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.
        cluster: the devices, and the processes, each of which calls this, sees the run's folder and
            simulates a part of the images; all there are when None.

    Raises:
        InputError: a number is out of range, a cost and errors are asked for, there is no such
            spiking network or it is damaged, or the trained one was evaluated on fewer images.
    """
    check_numbers(timesteps, settings, batch_size=batch_size, images=images)
    if error and cost is not None:
        raise InputError("operations are counted or values compared: leave cost or error out")
    cluster = cluster or everywhere()
    data = {"data_dir": data_dir, "raw_dir": raw_dir}
    converted = cluster.first(lambda: open_converted(folder, snn, **data))
    artifact, about = converted.artifact, converted.artifact.about
    fingerprint = artifacts.fingerprint(converted.place)
    total = converted.dataset.info.num_test
    count = min(images or total, total)
    ann = converted.ann_accuracy(count)
    ann_accuracy = ann["float32"]
    output = output or converted.results
    own = cluster.own
    own.check_batch_size(batch_size)
    same = {"timesteps": timesteps, "images": count, "batch_size": batch_size, "energy": cost}
    same |= {"error": error}
    cluster.check_same(network=fingerprint, **same, **settings.said())
    cluster.alone(lambda: output.mkdir(parents=True, exist_ok=True))
    of_settings = settings_fingerprint(timesteps, settings, images=images, cost=cost)
    automatic = isinstance(settings, AutoDelay)
    how: dict[str, Any] = {"batch_size": batch_size, "cluster": cluster}
    settings = with_delay(settings, converted, timesteps, **how)
    first, limit = part(count, batch_size, cluster)
    with progress.bar("simulating", total=limit, unit="images", shown=cluster.writes) as done:
        how |= {
            "first": first,
            "limit": limit,
            "done": done,
            "energy": cost is not None,
            "error": error,
        }
        found = curves(converted, timesteps, settings, **how)
    curve, top5, activity, errors = found
    of_top5: dict[str, Any] = {}
    if top5 is not None:
        of_top5["ann_top5_accuracy"] = converted.ann_accuracy(count, top=5).get("float32")
        of_top5["snn_top5_accuracy"] = {t: top5[t - 1] for t in latencies(timesteps)}
    of_errors: dict[str, Any] = {}
    if errors is not None:
        of_errors["rms_value"] = errors.scale
        for of, at in {"rms_error": errors.rms, "largest_error": errors.largest}.items():
            of_errors[of] = {t: float(at[t - 1]) for t in latencies(timesteps)}
    summary = {
        "timesteps": timesteps,
        "images": count,
        "ann_accuracy": ann_accuracy,
        "ann_accuracy_in": ann,
        "snn_accuracy": {t: curve[t - 1] for t in latencies(timesteps)},
        **of_top5,
        **of_errors,
        **settings.said(),
        **({"delay_estimated": True} if automatic else {}),
        "snn": snn,
        "norm": about["norm"],
        "weights": about.get("weights", "float32"),
        "network": about["network"],
        "tcl": about["tcl"],
        "data": about["data"]["name"],
        "trained_in": about["trained_in"],
        "settings": of_settings,
        "snn_fingerprint": fingerprint,
        **precision(artifact.graph),
        **provenance.describe(),
    }

    def write() -> dict[str, Any] | None:
        _write_curve(found, output / "curve.csv")
        label = f"SNN, {about['norm']} norm, {settings.readout} readout"
        if summary["weights"] != "float32":
            label += f", {summary['weights']} weights"
        title = f"{about['network']} on {about['data']['name']}, {count} test images"
        shown, lines = {label: list(curve)}, dict(ann)
        if top5 is not None:
            shown["SNN, top-5"] = list(top5)
            if (line := summary["ann_top5_accuracy"]) is not None:
                lines["top-5"] = line
        plot_curves(shown, lines, output / "curve.png", title=title, errors=errors)
        write_json(output / "summary.json", summary)
        if cost is None or activity is None:
            return None
        at = latencies(timesteps)
        report: dict[str, Any] = {"cost": cost, "title": title, "about": summary}
        return write_energy(activity, list(curve), ann_accuracy, at, output, **report)

    return Simulated(curve, top5, summary, cluster.alone(write), errors)


def curves(
    converted: Converted,
    timesteps: int,
    settings: Simulation,
    *,
    first: int,
    limit: int,
    batch_size: int,
    cluster: Cluster,
    done: Callable[[int], None],
    energy: bool = False,
    error: bool = False,
) -> Curves:
    """All that one pass over test images finds.

    Args:
        converted: the spiking network, and its data.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        first: number of the first test image that this process simulates.
        limit: how many it does; see `part`.
        batch_size: images at a time, over all devices of one process.
        cluster: the processes; what is found is of all.
        done: told the number of images after each batch.
        energy: whether operations are counted.
        error: whether values are compared, in place of that.
    """
    own, network = cluster.own, converted.artifact.graph
    graph = own.replicate(lower(network, neurons=settings.neurons))
    batches = converted.batches("test", batch_size, first=first, limit=limit, cluster=own)
    how: dict[str, Any] = {"top": converted.tops, "cluster": cluster, "done": done}
    activity, errors = None, None
    if energy:
        accuracy, activity = measure(graph, batches, timesteps, settings, counted=network, **how)
    elif error:
        analog = own.replicate(network)
        errors = error_curve(graph, batches, timesteps, settings, analog=analog, **how)
        accuracy = np.asarray(errors.accuracy)
    else:
        accuracy = latency_curve(graph, batches, timesteps, settings, **how)
    curve, *more = accuracy.T
    return Curves(curve, more[0] if more else None, activity, errors)


def _write_curve(found: Curves, path: Path) -> None:
    columns = {"accuracy": found.accuracy}
    if found.top5 is not None:
        columns["top5"] = found.top5
    if found.errors is not None:
        columns |= {"rms_error": found.errors.rms, "largest_error": found.errors.largest}
    with whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("T", *columns))
        for t, row in enumerate(zip(*columns.values(), strict=True), start=1):
            writer.writerow((t, *row))


def settings_fingerprint(timesteps: int, settings: Simulation | AutoDelay, **others: Any) -> str:
    """Of all that a record of a simulation depends on, beside the network."""
    return provenance.fingerprint(timesteps=timesteps, **settings.distinguished(), **others)


def check_numbers(timesteps: int, settings: Simulation | AutoDelay, **counts: int | None) -> None:
    """Raises InputError where a number is out of range; None is in any."""
    check_times(timesteps)
    check_counts(**counts)
    delay = settings.delay if isinstance(settings, Simulation) else 0
    if not 0 <= delay < timesteps:
        raise InputError(f"must be in [0, {timesteps}), below T, got {delay}", "delay")


def latencies(timesteps: int) -> list[int]:
    """The paper's latencies up to T, and T itself."""
    return sorted({t for t in PAPER_LATENCIES if t <= timesteps} | {timesteps})
