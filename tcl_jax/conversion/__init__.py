"""Conversion: a trained network in, a spiking graph out."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tcl_jax import graph as g
from tcl_jax.calibration import NormMethod
from tcl_jax.calibration import calibrate as calibrate
from tcl_jax.calibration import norm_method as norm_method
from tcl_jax.calibration import with_norms as with_norms
from tcl_jax.conversion.proof import Stages, compiled, prove
from tcl_jax.errors import InputError
from tcl_jax.graph.artifact import Artifact as Artifact
from tcl_jax.graph.artifact import load as load
from tcl_jax.graph.artifact import save as save
from tcl_jax.graph.fold import fold as fold
from tcl_jax.graph.graph import Graph as Graph
from tcl_jax.graph.graph import SpikingGraph as SpikingGraph
from tcl_jax.graph.normalise import normalise as normalise
from tcl_jax.graph.readings import evaluate as evaluate
from tcl_jax.tracing.trace import UnsupportedOperation as UnsupportedOperation
from tcl_jax.tracing.trace import trace as trace
from tcl_jax.tracing.trace import traced


def convert(
    fn: Callable[[Any, Array], Array],
    variables: Any,
    calibration: Array | Iterable[Array],
    *,
    norm: str | NormMethod = "tcl",
) -> Graph:
    """Convert an inference function into a spiking graph with thresholds of 1.

    Trace, fold batch norm (Eq. 7), find norm-factors, normalise (Eq. 5), and prove on the first
    batch that the result computes what the function does.

    Args:
        fn: ``variables, inputs -> logits`` in inference mode, of affine maps with TCL or ReLU.  Of
            a network that computes in bfloat16 give the float32 clone, as of a Flax module
            ``model.clone(dtype=jnp.float32)``: its own function rounds the weights, and rounded
            ones are what the graph would have.
        variables: its parameters and statistics.
        calibration: a batch of inputs or an iterable of batches, in floating point or as whole
            numbers that `fn` casts, from which the output's norm-factor is read (its largest
            logit), and with `norm` other than ``tcl`` every layer's.  Read batch by batch, none
            kept; only where a norm other than ``tcl`` or ``max`` reads an iterator, which can be
            gone through once, all are.
        norm: ``tcl``, ``max``, ``percentile:99.9``, ``spike_norm``, ``spike_norm:0.8``,
            ``model_based`` or another of `tcl_jax.calibration.NORMS`, as text or as made in
            Python; all but ``tcl`` also one a channel, as in ``max/channel``.

    Returns:
        The graph; `tcl_jax.simulation` runs it.

    Raises:
        UnsupportedOperation: `fn` does something that spikes cannot.
        InputError: the norm is unknown or does not fit the network, a batch is no array of images,
            or the converted network does not compute the same, which would be a fault of ours.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 2.0) @ w
    >>> graph = convert(network, jnp.eye(2), jnp.array([[1.0, 0.5]]))
    >>> [n.op.threshold.item() for n in graph.neurons]
    [1.0]
    """
    method = norm if isinstance(norm, NormMethod) else norm_method(norm)
    first, batches = _streamed(calibration, method)
    network, epsilon = traced(lambda x: fn(variables, x), first)
    folded = fold(network)
    folded = with_norms(folded, calibrate(folded, method, batches))
    stages = Stages(network, folded, normalise(folded))
    x = jnp.asarray(first)
    function = compiled(lambda x: fn(variables, x), x)
    prove(function, epsilon, stages, [(x, np.ones(len(x), bool))])
    return stages.normalised


def _streamed(calibration: Any, method: NormMethod) -> tuple[Any, Callable[[], Iterable[Any]]]:
    """The first batch, and what makes iterators over all."""
    # An array is iterable too: its rows are images, not batches of them.
    if hasattr(calibration, "shape"):
        calibration = [calibration]
    elif isinstance(calibration, dict) or not isinstance(calibration, Iterable):
        g.check_batch(calibration)
    batches = iter(calibration)
    first = next(batches, None)
    if first is None:
        raise InputError("there are no calibration images: give at least one batch")
    g.check_batch(first)
    if not isinstance(calibration, Iterator):
        return first, lambda: calibration
    whole: Iterable[Any] = chain([first], batches)
    if not method.reads_once:
        whole = list(whole)
    return first, lambda: whole
