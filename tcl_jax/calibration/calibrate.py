"""Norm-factors of a network: of hidden layers by any method, of the output by its logits."""

import numpy as np

from tcl_jax import graph as g
from tcl_jax.calibration.largest import largest_activations
from tcl_jax.calibration.method import Batches, NormFactors, NormMethod
from tcl_jax.errors import InputError


def calibrate(graph: g.Graph, method: NormMethod, batches: Batches) -> NormFactors:
    """Norm-factors of every layer or channel by one method, and of the output by its largest logit.

    Whatever the method, the output has one λ, its largest logit (classes could not be told apart by
    counting spikes that differ in amplitude; where no logit is above 0, the largest in size, and 1
    where all are 0), and a trained clip stays: λ is at most that.

    Channels are the last axis of the neurons' value in the graph: features of ``[features]``, and
    those of a convolution whatever the network's own layout.  A channel that is never active on the
    calibration images takes its layer's λ, and a layer its trained clip.

    Memory does not grow with the number of images.  Maxima are exact, and percentiles to float32; a
    percentile that is 0 is taken of the activations above 0.

    Args:
        graph: folded, with thresholds as traced.
        method: one of `tcl_jax.calibration.NORMS`.
        batches: makes a fresh iterator over batches of calibration images, at each call the same.

    Returns:
        λ by name of neurons, and of the output: a number each, or an array ``[c]`` a hidden layer
        where the method gives one a channel.  With ``tcl`` of the output alone.

    Raises:
        InputError: ``tcl`` for a network with an unclipped ReLU; one that is never active, for the
            other methods that read activations; images or activations that are not finite; no
            images; and what the method itself cannot do.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import calibrate, norm_method, trace
    >>> graph = trace(lambda x: jax.nn.relu(x) @ jnp.ones((2, 1)), jnp.zeros((1, 2)))
    >>> images = jnp.array([[1.0, 3.0], [2.0, -5.0]])
    >>> sorted(calibrate(graph, norm_method("max"), lambda: [images]).values())
    [3.0, 4.0]
    >>> norms = calibrate(graph, norm_method("max/channel"), lambda: [images])
    >>> norms[graph.neurons[0].name].tolist()
    [2.0, 3.0]
    """
    if not callable(batches):
        raise InputError(
            f"batches must be a function that makes an iterator, got a {type(batches).__name__}: "
            "give lambda: batches"
        )
    method.check(graph)
    largest = largest_activations(graph, batches())
    wild = [name for name, tops in largest.items() if not np.isfinite(tops).all()]
    if wild:
        raise InputError(
            f"layer {wild[0]!r} exceeds {graph.dtype} on the calibration images: the network "
            "multiplies too much for that type, or the images are too large"
        )
    norms = method.norm_factors(graph, batches, largest)
    logits = largest[graph.output.name]
    # An output that never fires is told apart by its potential: any λ of its size will do.
    of_output = logits.max() if logits.max() > 0 else np.abs(logits).max() or 1.0
    return norms | {graph.output.name: float(of_output)}
