"""Conversion of a run: trace its network, convert, verify on its data, and only then save."""

from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tcl_jax import data, provenance
from tcl_jax.conversion import artifact as artifacts
from tcl_jax.conversion.artifact import Artifact
from tcl_jax.conversion.calibrate import calibrate
from tcl_jax.conversion.fold import fold
from tcl_jax.conversion.graph import SpikingGraph, evaluate
from tcl_jax.conversion.normalise import normalise
from tcl_jax.conversion.norms import method, with_norms
from tcl_jax.conversion.trace import trace
from tcl_jax.errors import InputError
from tcl_jax.run import Run

# Relative to the largest logit.  Folding in float32 reorders sums of a few thousand terms;
# an error of the conversion itself is of the order of the logits.
_TOLERANCE = 1e-3


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
    if Path(snn).name != snn or (target.exists() and not (target / artifacts.GRAPH).exists()):
        raise InputError(
            f"--snn {snn!r} cannot name the spiking network: give a plain name that nothing else "
            f"in {run.folder} has"
        )
    how = method(norm)
    info = run.dataset.info
    folded = fold(trace(run.logits, jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)))
    norms = calibrate(folded, how, lambda: run.train_images(calibration_images, batch_size))
    clipped = with_norms(folded, norms)
    normalised = normalise(clipped)
    verification = _verify(run, folded, clipped, normalised, verification_images, batch_size)
    about = {
        "norm": str(how),
        "lambda": {n.name: np.asarray(n.threshold).tolist() for n in clipped.spiking},
        "calibration_images": min(calibration_images, info.num_train),
        "verification": verification,
        "network": run.config.model.name,
        "tcl": run.config.model.tcl,
        "checkpoint_step": run.step,
        **provenance.describe(),
    }
    artifact = Artifact(normalised, about)
    artifacts.save(artifact, run.folder / snn)
    return artifact


def _verify(
    run: Run,
    folded: SpikingGraph,
    clipped: SpikingGraph,
    normalised: SpikingGraph,
    images: int,
    batch_size: int,
) -> dict[str, Any]:
    @jax.jit
    def differences(graphs: Any, x: Array, mask: Array) -> tuple[Array, ...]:
        def largest(difference: Array) -> Array:
            return jnp.max(jnp.where(mask[:, None], jnp.abs(difference), 0.0))

        trained = run.logits(x)
        as_folded, as_clipped, as_normalised = (evaluate(graph, x) for graph in graphs)
        return (
            largest(as_folded - trained),
            largest(as_normalised - as_clipped),
            largest(trained),
            jnp.sum((as_folded.argmax(-1) == trained.argmax(-1)) & mask),
            jnp.sum(mask),
        )

    found = []
    graphs = (folded, clipped, normalised)
    with closing(
        data.eval_batches(run.dataset.test, batch_size=batch_size, limit=images)
    ) as batches:
        for batch in batches:
            x = data.standardize(jnp.asarray(batch["image"]), run.dataset.info)
            found.append([v.item() for v in differences(graphs, x, batch["mask"])])
    folding, normalising, largest, _, _ = np.max(found, axis=0)
    *_, same, seen = np.sum(found, axis=0)
    for what, error in (("folded", folding), ("normalised", normalising)):
        if not error <= _TOLERANCE * largest:
            raise InputError(
                f"the {what} network's logits differ from the trained network's by {error:.3g} "
                f"where the largest logit is {largest:.3g}: the conversion is not exact, so "
                "nothing was saved (are the batch statistics finite?)"
            )
    return {
        "images": int(seen),
        "same_class": int(same),
        "largest_logit": float(largest),
        "max_abs_logit_difference_folded": float(folding),
        "max_abs_logit_difference_normalised": float(normalising),
    }
