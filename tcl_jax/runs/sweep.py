"""Accuracy against latency of several spiking networks and settings, each simulated once."""

import json
import re
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tcl_jax import progress, provenance
from tcl_jax.calibration import NormMethod
from tcl_jax.cluster import Cluster, everywhere
from tcl_jax.errors import InputError
from tcl_jax.graph import artifact as artifacts
from tcl_jax.record import free, write_json
from tcl_jax.report.plots import plot_curves
from tcl_jax.report.sweep import Row, rows, spread, write_points
from tcl_jax.runs.batches import part
from tcl_jax.runs.convert import convert_run
from tcl_jax.runs.converted import SWEEP, Converted, open_converted, spiking_networks
from tcl_jax.runs.delay import AutoDelay, with_delay
from tcl_jax.runs.simulate import check_numbers, curves
from tcl_jax.runs.trained import open_run
from tcl_jax.simulation.settings import Simulation
from tcl_jax.training import CONFIG
from tcl_jax.training import config as configs

POINTS = "sweep.json"
"""Every simulation that has ended, by what it was of."""


class Network(NamedTuple):
    """A run's spiking network."""

    run: Path
    snn: str


class Sweep(NamedTuple):
    """What a sweep found.

    Attributes:
        common: what all simulations have in common, in words.
        rows: what each found; those that differ in seeds alone are one.
        known: how many simulations were there already.
        alike: names of spiking networks that are the same network, wherever there are several.
    """

    common: str
    rows: list[Row]
    known: int
    alike: list[list[str]]


def sweep_runs(
    networks: Sequence[Network],
    timesteps: int,
    settings: Sequence[Simulation | AutoDelay],
    *,
    output: Path,
    images: int | None = None,
    batch_size: int = 100,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
    cluster: Cluster | None = None,
) -> Sweep:
    """Simulate each network in each way, one after another; what has been is not done again.

    One program serves all values of a number, and all networks of one structure.

    Writes ``sweep.json`` as each ends, which keeps those of earlier sweeps too, and in the end
    ``sweep.csv``, a row for each simulation and T, and ``sweep.png``.

    Args:
        networks: of one or several runs.
        timesteps: the longest latency T; where a longer one is known its beginning is taken.
        settings: how they are simulated; a delay may be left to be found for each network.
        output: folder to write to.
        images: number of test images; None takes all.
        batch_size: images at a time, over all devices of one process.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.
        cluster: as `tcl_jax.runs.simulate.simulate_run` takes it.

    Raises:
        InputError: as there; or ``sweep.json`` is damaged.
    """
    for how in settings:
        check_numbers(timesteps, how, batch_size=batch_size, images=images)
    cluster = cluster or everywhere()
    cluster.own.check_batch_size(batch_size)
    opened = [_opened(n, cluster, data_dir=data_dir, raw_dir=raw_dir) for n in networks]
    counts = [min(images or c.dataset.info.num_test, c.dataset.info.num_test) for c in opened]
    todo = [
        (_of(c, count, s), c, s, _described(c, count, s))
        for c, count in zip(opened, counts, strict=True)
        for s in settings
    ]
    cluster.check_same(points=[key for key, *_ in todo], timesteps=timesteps, batch_size=batch_size)
    cluster.alone(lambda: output.mkdir(parents=True, exist_ok=True))
    found = cluster.alone(lambda: _read(output / POINTS))
    left = {
        key: part(point["images"], batch_size, cluster)
        for key, *_, point in todo
        if len(found.get(key, {"accuracy": []})["accuracy"]) < timesteps
    }
    before = sum(key not in left for key, *_ in todo)
    total = sum(limit for _, limit in left.values())
    with progress.bar("simulating", total=total, unit="images", shown=cluster.writes) as done:
        for key, converted, how, point in todo:
            if key not in left:
                continue
            first, limit = left.pop(key)
            which: dict[str, Any] = {"batch_size": batch_size, "cluster": cluster}
            known = with_delay(how, converted, timesteps, **which)
            which |= {"first": first, "limit": limit, "done": done}
            of_all = curves(converted, timesteps, known, **which)
            measured: dict[str, Any] = {"delay": known.delay, "accuracy": of_all.accuracy.tolist()}
            if of_all.top5 is not None:
                measured["top5"] = of_all.top5.tolist()
            found[key] = {**point, **measured, "timesteps": timesteps, **provenance.describe()}
            cluster.alone(lambda: write_json(output / POINTS, found, indent=None))
    points = [
        point
        | {"delay": found[key]["delay"]}
        | {n: found[key][n][:timesteps] for n in ("accuracy", "top5") if n in found[key]}
        for key, *_, point in todo
    ]
    common, of_all_seeds = rows(points)

    def write() -> None:
        table, plot = SWEEP
        write_points(points, output / table)
        _plot(common, of_all_seeds, output / plot)

    cluster.alone(write)
    return Sweep(common, of_all_seeds, before, _alike(points))


def of_norm(
    run: Path,
    norm: NormMethod,
    *,
    data_dir: Path | None = None,
    raw_dir: Path | None = None,
    batch_size: int = 100,
    cluster: Cluster | None = None,
) -> Network:
    """A run's spiking network of a norm, with weights in float32; converted where there is none.

    Args:
        run: the run's folder.
        norm: how its norm-factors are found.
        data_dir: where prepared data sets lie; TFDS's default when None.
        raw_dir: where raw files of the data set lie.
        batch_size: images at a time.
        cluster: the processes, each of which calls this.

    Raises:
        InputError: there are several, or it cannot be converted.
    """
    cluster = cluster or everywhere()
    wanted = {"norm": str(norm), "weights": "float32"}
    there = cluster.alone(lambda: spiking_networks(run))
    names = [n for n, about in there.items() if wanted == {"weights": "float32"} | _only(about)]
    if len(names) > 1:
        raise InputError(
            f"{run} has several spiking networks by the norm {norm} ({', '.join(names)}): "
            'name those to simulate, as with snn="snn"'
        )
    if names:
        return Network(run, names[0])
    plain = re.sub(r"[^\w.=]+", "-", f"snn-{norm}")
    name = cluster.alone(lambda: free(run / plain).name)
    data: dict[str, Any] = {"data_dir": data_dir, "raw_dir": raw_dir}
    opened = cluster.first(lambda: open_run(run, **data))
    convert_run(opened, norm=str(norm), snn=name, batch_size=batch_size, cluster=cluster)
    return Network(run, name)


def _only(about: dict[str, Any]) -> dict[str, Any]:
    return {name: about[name] for name in ("norm", "weights") if name in about}


def _opened(network: Network, cluster: Cluster, **data: Any) -> Converted:
    return cluster.first(lambda: open_converted(network.run, network.snn, **data))


def _described(
    converted: Converted, images: int, settings: Simulation | AutoDelay
) -> dict[str, Any]:
    """A simulation that is to be: what it is of, and what is known of that."""
    about, said = converted.artifact.about, settings.said()
    of_network = artifacts.fingerprint(converted.place)
    top5 = converted.ann_accuracy(images, top=5).get("float32")
    return {
        "run": str(converted.folder),
        "snn": converted.snn,
        "snn_fingerprint": of_network,
        "network": about["network"],
        "norm": about["norm"],
        "weights": about.get("weights", "float32"),
        "checkpoint_step": about.get("checkpoint_step"),
        "data": about["data"]["name"],
        "images": images,
        **{of: said[of] for of in ("neurons", "coding", "readout")},
        "delay": said["delay"],
        "delay_estimated": isinstance(settings, AutoDelay),
        "seed": said["seed"],
        "trained": _trained(converted.folder),
        "ann_accuracy": converted.ann_accuracy(images)["float32"],
        **({} if top5 is None else {"ann_top5_accuracy": top5}),
    }


def _of(converted: Converted, images: int, settings: Simulation | AutoDelay) -> str:
    """Of all that what is found depends on."""
    about = converted.artifact.about
    data = {"data": about["data"], "standardisation": about["standardisation"]}
    network = artifacts.fingerprint(converted.place)
    return provenance.fingerprint(
        network=network, images=images, **data, **settings.distinguished()
    )


def _alike(points: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Networks of a run with the same weights and thresholds: one is simulated for all of them."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for point in points:
        of_network = point["run"], point["snn_fingerprint"]
        names.setdefault(of_network, {})[f"{point['snn']} ({point['norm']})"] = None
    return [list(found) for found in names.values() if len(found) > 1]


def _trained(run: Path) -> dict[str, Any] | None:
    """Settings of a run's training, where they are there yet."""
    with suppress(InputError, OSError):
        return {
            name: str(value) for name, value in configs.flat(configs.read(run / CONFIG)).items()
        }
    return None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        all(len(point["accuracy"]) for point in content.values())
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}, which earlier sweeps left, is damaged ({error}): move it away to simulate "
            "all again"
        ) from None
    return content


def _plot(common: str, found: Sequence[Row], path: Path) -> None:
    # Of each trained network a line, named by the first that it is of.
    levels = {tuple(sorted(set(row.ann))): row for row in reversed(found)}
    lines = {row.label: float(np.mean(level)) for level, row in reversed(levels.items())}
    plot_curves(
        {row.label or "SNN": row.accuracy.mean(0) for row in found},
        lines if len(lines) <= 4 else {},
        path,
        title=textwrap.fill(common, 80),
        spreads={row.label or "SNN": spread(row.accuracy) for row in found},
    )
