"""Conversion of a run: trace its network, convert, verify on its data, and only then save."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tcl_jax import data, provenance
from tcl_jax import graph as g
from tcl_jax.calibration.calibrate import calibrate
from tcl_jax.calibration.norms import method, with_norms
from tcl_jax.conversion.proof import Stages, prove
from tcl_jax.errors import InputError
from tcl_jax.files import free
from tcl_jax.graph import artifact as artifacts
from tcl_jax.graph.artifact import Artifact
from tcl_jax.graph.convolution import PRECISION
from tcl_jax.graph.fold import fold
from tcl_jax.graph.normalise import normalise
from tcl_jax.run import LAYER_REPORT, RESULTS, Run, results_folder
from tcl_jax.tracing.trace import traced
from tcl_jax.training.step import inference


def convert_run(
    run: Run,
    *,
    norm: str = "tcl",
    snn: str = "snn",
    calibration_images: int = 2000,
    verification_images: int = 1000,
    batch_size: int = 100,
) -> Artifact:
    """Convert a run's network and save it as an artifact within the run's folder.

    What was measured on another network that it replaces is moved to ``replaced-...`` beside.

    Args:
        run: the opened run.
        norm: as `tcl_jax.conversion.method` reads it.
        snn: the artifact's name.
        calibration_images: training images that norm-factors are read from.
        verification_images: test images on which the folded network must give the logits of the
            trained one, and the normalised network those of the folded one with the same clips.
        batch_size: images at a time.

    Returns:
        The artifact that was saved.

    Raises:
        InputError: a number is not above 0, `snn` is no name or is taken, the norm does not
            fit the network, or the converted network does not compute the same.
    """
    for name, value in (
        ("calibration-images", calibration_images),
        ("verification-images", verification_images),
        ("batch-size", batch_size),
    ):
        if value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    # What is there of that name will be replaced: it had better be a spiking network.
    target = run.folder / snn
    if Path(snn).name != snn or not artifacts.is_place(target):
        raise InputError(
            f"--snn {snn!r} cannot name the spiking network: give a plain name that nothing else "
            f"in {run.folder} has"
        )
    how = method(norm)
    info = run.dataset.info
    sample = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
    network, epsilon = traced(run.logits, sample)
    folded = fold(network)
    norms = calibrate(folded, how, lambda: run.train_images(calibration_images, batch_size))
    clipped = with_norms(folded, norms)
    stages = Stages(network, folded, clipped, normalise(clipped))
    verification = _verify(run, stages, epsilon, verification_images, batch_size)
    verification |= _as_trained(run, verification_images, batch_size)
    about = {
        "norm": str(how),
        "lambda": {n.name: np.asarray(n.op.threshold).tolist() for n in clipped.spiking},
        "standardisation": {"mean": list(info.mean), "std": list(info.std)},
        "calibration_images": min(calibration_images, info.num_train),
        "verification": verification,
        "network": run.config.model.name,
        "tcl": run.config.model.tcl,
        "trained_in": run.trained_in,
        "checkpoint_step": run.step,
        "total_steps": run.total_steps,
        "settings": provenance.fingerprint(
            norm=str(how),
            calibration_images=calibration_images,
            verification_images=verification_images,
            step=run.step,
        ),
        **g.precision(stages.normalised),
        **provenance.describe(),
    }
    artifact = Artifact(stages.normalised, about)
    before = artifacts.fingerprint(target)
    artifacts.save(artifact, target)
    if before != artifacts.fingerprint(target):
        _set_aside_results(run.folder, snn, before)
    return artifact


def _set_aside_results(folder: Path, snn: str, before: str | None) -> None:
    """What was measured on the network that was there, or of one gone since, is not of the new."""
    for name in LAYER_REPORT:
        (folder / snn / name).unlink(missing_ok=True)
    place = results_folder(folder, snn)
    found = [place / name for name in RESULTS if (place / name).exists()]
    if not found:
        return
    aside = free(place / f"replaced-{before or 'network'}")
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    logging.warning("results of another network that was in %s are now in %s", folder / snn, aside)


def _verify(
    run: Run, stages: Stages, epsilon: float, images: int, batch_size: int
) -> dict[str, Any]:
    found = prove(run.logits, epsilon, stages, _test_images(run, images, batch_size))
    return {
        "images": found.images,
        "same_class": found.same_class,
        "largest_logit": found.largest,
        "max_abs_logit_difference_folded": found.folded,
        "max_abs_logit_difference_normalised": found.normalised,
    }


def _as_trained(run: Run, images: int, batch_size: int) -> dict[str, Any]:
    """What the type that a network was trained in changes; nothing of one trained in float32."""
    if run.trained_in == "float32":
        return {}
    exact, rounded = jax.jit(inference(run.float32, PRECISION)), jax.jit(inference(run.model))
    same, difference = 0, 0.0
    for x, mask in _test_images(run, images, batch_size):
        a, b = (np.asarray(f(run.variables, x), np.float64)[mask] for f in (exact, rounded))
        same += int(np.sum(a.argmax(-1) == b.argmax(-1)))
        difference = max(difference, float(np.max(np.abs(a - b), initial=0.0)))
    return {
        "same_class_as_trained": same,
        "max_abs_logit_difference_as_trained": difference,
    }


def _test_images(run: Run, count: int, batch_size: int) -> Iterator[tuple[Array, np.ndarray]]:
    with closing(
        data.eval_batches(run.dataset.test, batch_size=batch_size, limit=count)
    ) as batches:
        for batch in batches:
            yield data.standardize(jnp.asarray(batch["image"]), run.dataset.info), batch["mask"]
