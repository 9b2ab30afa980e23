"""Conversion: a trained network in, a spiking graph out."""

from collections.abc import Callable, Iterable
from typing import Any, cast

from jaxtyping import Array

from tcl_jax.conversion.artifact import Artifact as Artifact
from tcl_jax.conversion.artifact import load as load
from tcl_jax.conversion.artifact import save as save
from tcl_jax.conversion.calibrate import calibrate as calibrate
from tcl_jax.conversion.fold import fold as fold
from tcl_jax.conversion.graph import SpikingGraph as SpikingGraph
from tcl_jax.conversion.graph import evaluate as evaluate
from tcl_jax.conversion.normalise import normalise as normalise
from tcl_jax.conversion.norms import method as method
from tcl_jax.conversion.norms import with_norms as with_norms
from tcl_jax.conversion.trace import UnsupportedOperation as UnsupportedOperation
from tcl_jax.conversion.trace import trace as trace
from tcl_jax.errors import InputError


def convert(
    fn: Callable[[Any, Array], Array],
    variables: Any,
    calibration: Array | Iterable[Array],
    *,
    norm: str = "tcl",
) -> SpikingGraph:
    """Convert an inference function into a spiking graph with thresholds of 1.

    Trace, fold batch norm (Eq. 7), find norm-factors, normalise (Eq. 5).

    Args:
        fn: ``variables, inputs -> logits`` in inference mode, of affine maps with TCL or ReLU.
        variables: its parameters and statistics.
        calibration: a batch of inputs or an iterable of batches, from which the output's
            norm-factor is read (its largest logit), and with `norm` other than ``tcl`` every
            layer's.
        norm: ``tcl``, ``max``, ``percentile:P``, ``spike_norm``, ``spike_norm:S`` or
            ``model_based``; all but ``tcl`` also one a channel, as in ``max/channel`` (see
            `calibrate`).

    Returns:
        The graph; `tcl_jax.simulation` runs it.

    Raises:
        UnsupportedOperation: `fn` does something that spikes cannot.
        InputError: the norm is unknown or does not fit the network.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 2.0) @ w
    >>> graph = convert(network, jnp.eye(2), jnp.array([[1.0, 0.5]]))
    >>> [n.threshold.item() for n in graph.neurons]
    [1.0]
    """
    # An array is iterable too: its rows are images, not batches of them.
    batches: list[Array] = (
        [cast(Array, calibration)] if hasattr(calibration, "ndim") else list(calibration)
    )
    if not batches:
        raise InputError("there are no calibration images: give at least one batch")
    folded = fold(trace(lambda x: fn(variables, x), batches[0]))
    norms = calibrate(folded, method(norm), lambda: batches)
    return normalise(with_norms(folded, norms))
