"""Norm-factors λ: what a method to find them is, and their place as thresholds in a graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.registry import Choice, Choices

NormFactor = float | np.floating | Float[Array | np.ndarray, "..."]
"""A λ of a layer, or an array ``[c]`` of one a channel, which broadcasts at the last axis."""

NormFactors = dict[str, NormFactor]

Batches = Callable[[], Iterable[Real[Array | np.ndarray, "_ ..."]]]
"""Makes a fresh iterator over the same batches of calibration images at each call."""

Largest = dict[str, Float[np.ndarray, " _"]]
"""Largest activation of every channel, by name of neurons and of the output."""


@dataclass(frozen=True)
class NormMethod(Choice, ABC):
    """How norm-factors of hidden populations are found; the output's is its largest logit.

    A method is a dataclass of its options, registered in `NORMS`.
    """

    reads_once: ClassVar[bool] = False
    """Whether it needs no batches beside the largest activations, which are read first."""

    def check(self, graph: g.Graph) -> None:
        """Raises InputError where the method is not for such a network; before images are read."""

    @abstractmethod
    def norm_factors(self, graph: g.Graph, batches: Batches, largest: Largest) -> NormFactors:
        """λ by name of the hidden neurons: a number each, or an array ``[c]``.

        Args:
            graph: folded, with thresholds as traced.
            batches: of calibration images.
            largest: activations and logits on these.

        Raises:
            InputError: the method cannot tell λ from them.
        """


NORMS: Choices[NormMethod] = Choices("norm")
"""All methods, by name."""


def norm_method(text: str) -> NormMethod:
    """Read a method, such as ``tcl``, ``percentile:99.9`` or ``max/channel``.

    Args:
        text: the method's name, and its options as it is made in Python (see `tcl_jax.registry`);
            with the suffix ``/channel`` for one λ a channel.

    Raises:
        InputError: it is none, or a number is out of range.

    >>> from tcl_jax.conversion import norm_method
    >>> method = norm_method("percentile:99.9/channel")
    >>> method.percent, method.channel, str(method)
    (99.9, True, 'percentile:99.9/channel')
    """
    return NORMS.read(text)


def with_norms(graph: g.Graph, norms: NormFactors) -> g.Graph:
    """The graph with thresholds set by neuron name (the output's too); others stay, and clips do.

    Args:
        graph: any graph.
        norms: λ by name: a number, or an array ``[c]`` for values of shape ``[..., c]``.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import trace, with_norms
    >>> graph = trace(lambda x: jax.nn.relu(x), jnp.zeros((1, 2)))
    >>> graph.neurons[0].op.threshold.item()
    inf
    >>> with_norms(graph, {graph.neurons[0].name: 2.0}).neurons[0].op.threshold.item()
    2.0
    """
    return graph.with_thresholds({n: jnp.asarray(norms[n], graph.dtype) for n in norms})


def by_channel(values: Real[Array | np.ndarray, "b ..."]) -> Real[Array | np.ndarray, "n c"]:
    """Values of a batch with channels, their last axis, as columns."""
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def bounded(neurons: g.Node[g.Population]) -> bool:
    """Whether a clip follows the ReLU: if not, data must tell λ."""
    return bool(np.isfinite(np.asarray(neurons.op.clip)).all())


def of_neurons(
    clip: Real[Array, "..."], largest: Float[np.ndarray, " c"], channel: bool
) -> NormFactor:
    """λ of a population from the largest value of each of its channels.

    Args:
        clip: the population's, ∞ for none.  λ is at most that, so that the spiking network has the
            bounds that the analog one was trained with.
        largest: by channel.
        channel: whether to give one λ a channel.  A channel with nothing above 0 gets the
            layer's, as any λ does for it; a layer with nothing above 0 its clip, or 1.

    Returns:
        A number, or an array ``[c]``.  (The shape of the clip, where that is no scalar.)
    """
    bound = np.asarray(clip)
    layer = largest.max() if largest.max() > 0 else np.where(np.isfinite(bound), bound, 1).max()
    norm = np.where(largest > 0, largest, layer) if channel else layer
    norm = np.minimum(norm, bound)
    return norm if norm.ndim else float(norm)


def check_active(graph: g.Graph, largest: Largest, norm: NormMethod) -> None:
    """Raises InputError where a population without clip has no activation to read λ from."""
    silent = [n.name for n in graph.neurons if not bounded(n) and largest[n.name].max() <= 0]
    if silent:
        raise InputError(
            f'{named(silent)} is 0 on every calibration image, so that norm="{norm}" finds no '
            'norm-factor: calibrate on more images or on others, or use norm="model_based"'
        )


def named(layers: list[str]) -> str:
    """The first of some layers, and how many more there are."""
    others = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
    return f"layer {layers[0]!r}{others}"
