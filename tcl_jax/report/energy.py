"""Report of a simulation's energy: `energy.json`, `energy.csv` and `energy.png`."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tcl_jax.record import whole, write_json
from tcl_jax.report.plots import plot_energy
from tcl_jax.simulation.energy import Activity
from tcl_jax.simulation.operations import FLOAT32, OperationCost

PERCENTILES = (5, 50, 95)
"""Of images: between which energies most of them lie."""
_MICRO = 1e-6  # pJ to µJ


def as_json(
    activity: Activity, timesteps: Sequence[int], cost: OperationCost = FLOAT32
) -> dict[str, Any]:
    """What a simulation cost an image, on average: by layer at the last of some T, in all at each.

    In all also between what most images lie, and what of membrane potentials was read and written,
    which is not in the energy.

    Args:
        activity: as `tcl_jax.simulation.energy.measure` gives it.
        timesteps: latencies T, rising.
        cost: of an addition and of a multiply-accumulate.

    Returns:
        JSON types only; energies in µJ.
    """
    longest = timesteps[-1]
    energies, traffic = activity.energies(cost), activity.traffic()
    rates = activity.rates(longest)
    energy, (macs, additions) = activity.energy(cost), activity.total()
    return {
        "images": activity.images,
        "cost_pj": asdict(cost),
        "timesteps": longest,
        "layers": [
            {
                "name": layer.name,
                "neurons": layer.neurons,
                "rate": rates[layer.name],
                "additions": int(layer.operations[:longest].sum()) / activity.images,
            }
            for layer in activity.layers
        ],
        "ann": {**activity.ann._asdict(), "energy_uj": _MICRO * activity.ann.energy(cost)},
        "at": {
            str(t): {
                "macs": int(macs[t - 1]),
                "additions": float(additions[t - 1]),
                "energy_uj": _MICRO * float(energy[t - 1]),
                "energy_uj_percentiles": {
                    str(p): _MICRO * float(np.percentile(energies[t - 1], p)) for p in PERCENTILES
                },
                "membrane_bytes": float(traffic[t - 1]),
            }
            for t in timesteps
        },
    }


def write_energy(
    activity: Activity,
    accuracy: Sequence[float],
    ann_accuracy: float,
    timesteps: Sequence[int],
    folder: Path,
    *,
    cost: OperationCost = FLOAT32,
    title: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the report: `energy.csv` has every T, with the operations of every layer up to it.

    Args:
        activity: as `tcl_jax.simulation.energy.measure` gives it.
        accuracy: at T = 1, 2, ...
        ann_accuracy: the analog network's.
        timesteps: latencies T of `energy.json`, rising.
        folder: where to.
        cost: of an addition and of a multiply-accumulate.
        title: of the plot.
        about: what else `energy.json` shall say.

    Returns:
        What `energy.json` holds.
    """
    content = {**about, **as_json(activity, timesteps, cost)}
    write_json(folder / "energy.json", content)
    energy = _MICRO * activity.energy(cost)
    low, median, high = _MICRO * np.percentile(activity.energies(cost), PERCENTILES, axis=1)
    macs, additions = activity.total()
    layers = [np.cumsum(layer.operations) / activity.images for layer in activity.layers]
    with whole(folder / "energy.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        names = [f"additions:{layer.name}" for layer in activity.layers]
        images = [f"energy_uj_p{p}" for p in PERCENTILES]
        writer.writerow(("T", "accuracy", "macs", "additions", "energy_uj", *images, *names))
        for i, a in enumerate(accuracy):
            by_layer = (float(layer[i]) for layer in layers)
            row = (i + 1, float(a), int(macs[i]), float(additions[i]), float(energy[i]))
            of_images = (float(at[i]) for at in (low, median, high))
            writer.writerow((*row, *of_images, *by_layer))
    plot_energy(
        energy.tolist(),
        (low.tolist(), high.tolist()),
        content["ann"]["energy_uj"],
        accuracy,
        ann_accuracy,
        folder / "energy.png",
        title=title,
    )
    return content
