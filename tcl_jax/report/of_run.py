"""The layer by layer report of a run's conversion: `report.json`, and three plots beside it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tcl_jax import data, provenance
from tcl_jax.errors import InputError
from tcl_jax.files import whole
from tcl_jax.graph import SpikingGraph
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph.fold import fold
from tcl_jax.report import layer_plots
from tcl_jax.report.layers import Layer, as_json, layer_report
from tcl_jax.run import Run
from tcl_jax.tracing.trace import trace


def report_run(
    run: Run,
    *,
    snn: str = "snn",
    images: int = 100,
    timesteps: Sequence[int] = (10, 30, 100),
    batch_size: int = 100,
) -> list[Layer]:
    """Compare a run's network with its spiking one, layer by layer, on test images.

    Writes `report.json`, `activations.png`, `rates.png` (at the longest T) and `errors.png` into
    the spiking network's folder.

    Args:
        run: the opened run, at the checkpoint that was converted.
        snn: name of the spiking network within the run's folder.
        images: number of test images, from the first.
        timesteps: latencies T to report at.
        batch_size: images at a time.

    Returns:
        Reports of all layers.

    Raises:
        InputError: a number is not above 0, or there is no spiking network or it is damaged.
    """
    if images < 1 or batch_size < 1 or not timesteps:
        raise InputError("a report needs at least one image, and at least one latency T")
    artifact = artifacts.load(run.folder / snn)
    about, info = artifact.about, run.dataset.info
    found = layer_report(
        artifact.graph,
        _with_own_clips(run, artifact),
        _batches(run, min(images, info.num_test), batch_size),
        timesteps,
    )
    title = f"{about['network']} on {info.name}, {about['norm']} norm, {images} test images"
    content = as_json(
        found,
        about["lambda"],
        images=min(images, info.num_test),
        norm=about["norm"],
        v0=0.0,
        **provenance.describe(),
    )
    folder = run.folder / snn
    with whole(folder / "report.json") as file:
        file.write(json.dumps(content) + "\n")
    layer_plots.plot_activations(found, folder / "activations.png", title=title)
    layer_plots.plot_rates(found, max(timesteps), folder / "rates.png", title=title)
    layer_plots.plot_errors(found, folder / "errors.png", title=title)
    return found


def _with_own_clips(run: Run, artifact: artifacts.Artifact) -> SpikingGraph:
    """The normalised graph with the clips that the ANN has, or has not, in units of λ."""
    sample = jax.ShapeDtypeStruct((1, *run.dataset.info.image_shape), jnp.float32)
    neurons = fold(trace(run.logits, sample)).neurons
    norms = {n.name: np.asarray(artifact.about["lambda"][n.name], np.float32) for n in neurons}
    clips = {n.name: jnp.asarray(n.op.threshold / norms[n.name]) for n in neurons}
    return artifact.graph.with_thresholds(clips)


def _batches(run: Run, images: int, batch_size: int) -> Iterator[Any]:
    with closing(
        data.eval_batches(run.dataset.test, batch_size=min(batch_size, images), limit=images)
    ) as batches:
        for batch in batches:
            x = data.standardize(jnp.asarray(batch["image"]), run.dataset.info)
            yield x, jnp.asarray(batch["mask"])
