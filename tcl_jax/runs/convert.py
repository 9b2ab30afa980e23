"""Conversion of a run: trace its network, convert, verify on its data, and only then save."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tcl_jax import graph as g
from tcl_jax import progress, provenance
from tcl_jax.calibration import calibrate, norm_method, with_norms
from tcl_jax.cluster import Cluster, everywhere
from tcl_jax.conversion.proof import Stages, compiled, prove
from tcl_jax.errors import InputError
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph.artifact import Artifact
from tcl_jax.graph.fold import fold
from tcl_jax.graph.normalise import normalise
from tcl_jax.graph.synapses import WEIGHTS
from tcl_jax.pixels import standardize
from tcl_jax.record import free
from tcl_jax.runs.batches import check_counts, images_of, part
from tcl_jax.runs.converted import (
    LAYER_REPORT,
    RESULTS,
    SWEEP,
    Converted,
    packed,
    results_folder,
    tops,
)
from tcl_jax.runs.rounding import rounding
from tcl_jax.runs.trained import Run
from tcl_jax.simulation.readout import rank
from tcl_jax.tracing.trace import traced
from tcl_jax.training.evaluation import inference


def convert_run(
    run: Run,
    *,
    norm: str = "tcl",
    weights: str = "float32",
    snn: str = "snn",
    calibration_images: int = 2000,
    verification_images: int = 1000,
    images: int | None = None,
    batch_size: int = 100,
    cluster: Cluster | None = None,
) -> Converted:
    """Convert a run's network and save it as an artifact within the run's folder.

    What was measured on another network that it replaces is moved to ``replaced-...`` beside.

    Args:
        run: the opened run.
        norm: as `tcl_jax.conversion.norm_method` reads it.
        weights: the type that weights are rounded to, of `tcl_jax.graph.synapses.WEIGHTS`.
        snn: the artifact's name.
        calibration_images: training images that norm-factors are read from.
        verification_images: test images on which the folded network must give the logits of the
            trained one, and the normalised network those of the folded one.
        images: test images on which the trained network is evaluated, to be compared with the
            spiking one on as many or fewer; None takes all.
        batch_size: images at a time.
        cluster: the processes, each of which calls this and evaluates the trained network on a part
            of the images; the first alone writes.  All there are when None.

    Returns:
        What was saved, with its data.

    Raises:
        InputError: a number is not above 0, `snn` is no name or is taken, the norm does not
            fit the network, the converted network does not compute the same, or has no form with
            such weights.
    """
    counts = {
        "calibration_images": calibration_images,
        "verification_images": verification_images,
        "images": images,
        "batch_size": batch_size,
    }
    check_counts(**counts)
    # What is there of that name will be replaced: it had better be a spiking network.
    target = run.folder / snn
    if Path(snn).name != snn or not artifacts.is_place(target):
        raise InputError(
            f"cannot be {snn!r}, for the spiking network: give a plain name that nothing else in "
            f"{run.folder} has",
            "snn",
        )
    method, rounded = norm_method(norm), WEIGHTS.find(weights)
    cluster = cluster or everywhere()
    trained = provenance.fingerprint(config=run.config)
    same = {"norm": method, "weights": weights, "snn": snn}
    cluster.check_same(run=trained, checkpoint=run.step, **same, **counts)
    info = run.dataset.info
    network, epsilon = traced(run.logits, _like(run, 1))
    folded = fold(network)
    norms = calibrate(
        folded,
        method,
        lambda: images_of(run.batches("train", batch_size, limit=calibration_images)),
    )
    folded = with_norms(folded, norms)
    stages = Stages(network, folded, normalise(folded))
    function = compiled(run.logits, _like(run, batch_size))
    tested = run.batches("test", batch_size, limit=verification_images)
    proof = prove(function, epsilon, stages, ((b["image"], np.asarray(b["mask"])) for b in tested))
    graph = rounded(stages.normalised, _extremes(run))
    # No setting where there is nothing to set: records that name no weights are of float32.
    of_weights = {} if weights == "float32" else {"weights": weights}
    of_images = images or info.num_test, batch_size, cluster
    source = run.config.data
    about = {
        "norm": str(method),
        "lambda": {n.name: np.asarray(n.op.unit).tolist() for n in stages.normalised.spiking},
        "data": {"name": source.name, "pad_to": source.pad_to, "image_size": source.image_size},
        "standardisation": {"mean": list(info.mean), "std": list(info.std)},
        "calibration_images": min(calibration_images, info.num_train),
        "verification": {
            "images": proof.images,
            "same_class": proof.same_class,
            "largest_logit": proof.largest,
            "max_abs_logit_difference_folded": proof.folded,
            "max_abs_logit_difference_normalised": proof.normalised,
        },
        "weights": weights,
        "rounding": rounding(run, stages.normalised, graph, *of_images) if of_weights else None,
        "ann": _evaluated(run, function, *of_images),
        "network": run.config.model.name,
        "tcl": run.config.model.tcl,
        "trained_in": run.trained_in,
        "checkpoint_step": run.step,
        "total_steps": run.total_steps,
        # Not `images`: the network does not depend on them.
        "settings": provenance.fingerprint(
            norm=str(method),
            calibration_images=calibration_images,
            verification_images=verification_images,
            step=run.step,
            **of_weights,
        ),
        **g.precision(graph),
        **provenance.describe(),
    }
    artifact = Artifact(graph, about)

    def write() -> None:
        before = artifacts.fingerprint(target)
        artifacts.save(artifact, target)
        if before != artifacts.fingerprint(target):
            _set_aside_results(run.folder, snn, before)

    cluster.alone(write)
    return Converted(run.folder, snn, artifact, run.dataset)


def _set_aside_results(folder: Path, snn: str, before: str | None) -> None:
    """What was measured on the network that was there, or of one gone since, is not of the new."""
    for name in LAYER_REPORT:
        (folder / snn / name).unlink(missing_ok=True)
    place = results_folder(folder, snn)
    found = [place / name for name in RESULTS if (place / name).exists()]
    table, plot = (folder / name for name in SWEEP)
    if before and table.exists() and before in table.read_text(encoding="utf-8"):
        found += [path for path in (table, plot) if path.exists()]
    if not found:
        return
    aside = free(place / f"replaced-{before or 'network'}")
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    logging.warning("results of another network that was in %s are now in %s", folder / snn, aside)


def _extremes(run: Run) -> Float[Array, "2 h w c"]:
    """Images of the smallest and the largest values that there can be."""
    info = run.dataset.info
    pixels = np.stack([np.full(info.image_shape, value, np.uint8) for value in (0, 255)])
    return standardize(jnp.asarray(pixels), info.mean, info.std)


def _like(run: Run, batch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch_size, *run.dataset.info.image_shape), jnp.float32)


def _evaluated(
    run: Run, function: Callable[[Array], Array], images: int, batch_size: int, cluster: Cluster
) -> dict[str, Any]:
    """Which test images the trained network gets right, in float32 and as it was trained.

    Which, and not how many: the spiking network may be compared with it on fewer.
    """
    networks = {"float32": function}
    if run.trained_in not in networks:
        network = jax.jit(inference(run.model))
        networks[run.trained_in] = lambda x: network(run.variables, x)
    images = min(images, run.dataset.info.num_test)
    ranked = jax.jit(rank)
    ranks: dict[str, list[np.ndarray]] = {dtype: [] for dtype in networks}
    same, difference = 0, 0.0
    first, limit = part(images, batch_size, cluster)
    with progress.bar("evaluating", total=limit, unit="images", shown=cluster.writes) as done:
        for batch in run.batches("test", batch_size, first=first, limit=limit):
            mask = np.asarray(batch["mask"])
            found = {dtype: f(batch["image"]) for dtype, f in networks.items()}
            for dtype, values in found.items():
                ranks[dtype].append(np.asarray(ranked((values,), batch["label"]))[mask])
            logits = {
                dtype: np.asarray(values, np.float64)[mask] for dtype, values in found.items()
            }
            exact, as_trained = logits["float32"], logits[run.trained_in]
            same += int(np.sum(exact.argmax(-1) == as_trained.argmax(-1)))
            difference = max(difference, float(np.abs(exact - as_trained).max()))
            done(len(exact))
    parts, counts, differences = zip(*cluster.gather((ranks, same, difference)), strict=True)
    same, difference = sum(counts), max(differences)
    which = {dtype: np.concatenate([b for p in parts for b in p[dtype]]) for dtype in networks}
    known: dict[str, Any] = {"images": images}
    for top in tops(run.dataset.info.num_classes):
        of = "" if top == 1 else f"_top{top}"
        right = {dtype: before < top for dtype, before in which.items()}
        known[f"accuracy{of}"] = {dtype: float(r.mean()) for dtype, r in right.items()}
        known[f"right{of}"] = {dtype: packed(r) for dtype, r in right.items()}
    if len(networks) == 1:
        return known
    apart = {"same_class_as_trained": same, "max_abs_logit_difference_as_trained": difference}
    return known | apart
