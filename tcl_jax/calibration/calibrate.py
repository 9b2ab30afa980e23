"""Norm-factors of a network by any method: the one place that knows them all."""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Array, Real

from tcl_jax import graph as g
from tcl_jax.calibration.activations import largest_activations, max_norm, percentile_norm
from tcl_jax.calibration.model_based import model_based
from tcl_jax.calibration.norms import Method, Norms, bounded
from tcl_jax.calibration.spike_norm import spike_norm
from tcl_jax.errors import InputError


def calibrate(
    graph: g.SpikingGraph,
    how: Method,
    batches: Callable[[], Iterable[Real[Array | np.ndarray, "_ ..."]]],
    *,
    timesteps: int = 100,
    spiking_images: int = 200,
) -> Norms:
    """Norm-factors of every layer or channel by one method, and of the output by its largest logit.

    | method | λ | source |
    |---|---|---|
    | ``tcl`` | trained | Ho & Chang 2021 |
    | ``max`` | largest activation | Diehl et al. 2015; `activations.max_norm` |
    | ``percentile`` | percentile of activations | Rueckauer et al. 2017; `percentile_norm` there |
    | ``spike_norm`` | largest current from spikes | Sengupta et al. 2019; `spike_norm.spike_norm` |
    | ``model_based`` | largest possible activation | Diehl et al. 2015; `model_based.model_based` |

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
        how: the method.
        batches: makes a fresh iterator over batches of calibration images, at each call the same.
        timesteps: for ``spike_norm``, number of steps T.
        spiking_images: for ``spike_norm``, of how many images, from the first, it simulates.

    Returns:
        λ by name of neurons, and of the output: a number each, or an array ``[c]`` a hidden layer
        where the method gives one a channel.  With ``tcl`` of the output alone.

    Raises:
        InputError: ``tcl`` for a network with an unclipped ReLU; one that is never active, for the
            other methods that read activations; images or activations that are not finite; no
            images; and what the method itself cannot do.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import calibrate, method, trace
    >>> graph = trace(lambda x: jax.nn.relu(x) @ jnp.ones((2, 1)), jnp.zeros((1, 2)))
    >>> images = jnp.array([[1.0, 3.0], [2.0, -5.0]])
    >>> sorted(calibrate(graph, method("max"), lambda: [images]).values())
    [3.0, 4.0]
    >>> calibrate(graph, method("max/channel"), lambda: [images])[graph.neurons[0].name].tolist()
    [2.0, 3.0]
    """
    if not callable(batches):
        raise InputError(
            f"batches must be a function that makes an iterator, got a {type(batches).__name__}: "
            "give lambda: batches"
        )
    bare = [n.name for n in graph.neurons if not bounded(n)]
    if how.name == "tcl" and bare:
        raise InputError(
            f"{_named(bare)} has no trained λ: convert this network with --norm max or --norm "
            "percentile:99.9, or train it with TCL"
        )
    largest = largest_activations(graph, batches())
    wild = [name for name, tops in largest.items() if not np.isfinite(tops).all()]
    if wild:
        raise InputError(
            f"layer {wild[0]!r} exceeds {graph.dtype} on the calibration images: the network "
            "multiplies too much for that type, or the images are too large"
        )
    silent = [name for name in bare if largest[name].max() <= 0]
    if silent and how.name in ("max", "percentile"):
        raise InputError(
            f"{_named(silent)} is 0 on every calibration image, so that --norm {how} finds no "
            "norm-factor: calibrate on more images or on others, or use --norm model_based"
        )
    norms: Norms
    match how.name:
        case "tcl":
            norms = {}
        case "max":
            norms = max_norm(graph, largest, how.per_channel)
        case "percentile":
            norms = percentile_norm(graph, batches, largest, how.percent, how.per_channel)
        case "spike_norm":
            norms = spike_norm(
                graph,
                batches(),
                scaling=how.scaling,
                per_channel=how.per_channel,
                timesteps=timesteps,
                images=spiking_images,
            )
        case "model_based":
            norms = model_based(graph, batches(), how.per_channel)
        case _:
            raise TypeError(f"{how.name} has no function")
    logits = largest[graph.output.name]
    # An output that never fires is told apart by its potential: any λ of its size will do.
    of_output = logits.max() if logits.max() > 0 else np.abs(logits).max() or 1.0
    return norms | {graph.output.name: float(of_output)}


def _named(layers: list[str]) -> str:
    others = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
    return f"layer {layers[0]!r}{others}"
