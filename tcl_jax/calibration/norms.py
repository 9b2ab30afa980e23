"""Norm-factors λ as values: how they are to be found, and their place as thresholds in a graph."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError

Norm = float | np.floating | Float[Array | np.ndarray, "..."]
"""A λ of a layer, or an array ``[c]`` of one a channel, which broadcasts at the last axis."""

Norms = dict[str, Norm]

_CHANNEL = "/channel"
_KNOWN = (
    "tcl, max, percentile:P, spike_norm, spike_norm:S and model_based, "
    "all but tcl also with /channel after them"
)


@dataclass(frozen=True)
class Method:
    """How norm-factors are found; ``str`` gives the text that `method` reads.

    Attributes:
        name: ``tcl`` (trained bounds), ``max`` (Diehl et al. 2015: the largest activation),
            ``percentile`` (Rueckauer et al. 2017), ``spike_norm`` (Sengupta et al. 2019: the
            largest current from spiking neurons) or ``model_based`` (Diehl et al. 2015: the
            largest activation that the weights allow).
        percent: for ``percentile``, the part of all activations, zeros included, in percent, that
            is not clipped.
        scaling: for ``spike_norm``, a factor S of every threshold (Han et al. 2020: 0.7 to 0.9).
        per_channel: one λ a channel, the last axis of the neurons' own value, and not one a layer.

    Raises:
        InputError: there is no such method, or a number is out of range or not the method's own.
    """

    name: str
    percent: float = 100.0
    scaling: float = 1.0
    per_channel: bool = False

    def __post_init__(self) -> None:
        if self.name not in ("tcl", "max", "percentile", "spike_norm", "model_based"):
            raise InputError(f"unknown norm {self.name!r}: the norms are {_KNOWN}")
        if not 0 < self.percent <= 100 or (self.percent != 100 and self.name != "percentile"):
            raise InputError(
                f"{self.percent} is no percentile: write percentile:P with P above 0 and at most "
                "100, as in percentile:99.9"
            )
        if not 0 < self.scaling <= 1 or (self.scaling != 1 and self.name != "spike_norm"):
            raise InputError(
                f"{self.scaling} is no scaling of thresholds: write spike_norm:S with S above 0 "
                "and at most 1, as in spike_norm:0.8"
            )
        if self.per_channel and self.name == "tcl":
            raise InputError(
                "tcl/channel is no norm: a trained λ belongs to what it was trained for, so write "
                "tcl, or max/channel"
            )

    @property
    def reads_once(self) -> bool:
        """Whether `calibrate` goes through the images a single time."""
        return self.name in ("tcl", "max")

    def __str__(self) -> str:
        number = {"percentile": self.percent, "spike_norm": self.scaling}.get(self.name)
        if self.name == "spike_norm" and number == 1:
            number = None
        # repr, as :g would round 99.99999 to 100.
        value = "" if number is None else ":" + repr(float(number)).removesuffix(".0")
        return self.name + value + (_CHANNEL if self.per_channel else "")


def method(text: str) -> Method:
    """Read a method.

    Args:
        text: ``tcl``, ``max``, ``percentile:P``, ``spike_norm``, ``spike_norm:S`` or
            ``model_based``; all but ``tcl`` also with the suffix ``/channel``, for one λ a channel.

    Raises:
        InputError: it is none of them, or a number is out of range.

    >>> from tcl_jax.conversion import method
    >>> how = method("percentile:99.9/channel")
    >>> how.percent, how.per_channel, str(how)
    (99.9, True, 'percentile:99.9/channel')
    """
    per_channel = text.endswith(_CHANNEL)
    name, colon, value = text.removesuffix(_CHANNEL).partition(":")
    if name == "percentile":
        return Method(
            name, percent=_number(text, value, "percentile:99.9"), per_channel=per_channel
        )
    if name == "spike_norm" and colon:
        return Method(name, scaling=_number(text, value, "spike_norm:0.8"), per_channel=per_channel)
    return Method(text if colon else name, per_channel=per_channel)


def _number(text: str, value: str, example: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise InputError(f"{text!r} lacks a number: write it as in {example}") from None


def with_norms(graph: g.SpikingGraph, norms: Norms) -> g.SpikingGraph:
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
    clip: Real[Array, "..."], largest: Float[np.ndarray, " c"], per_channel: bool
) -> Norm:
    """λ of a population from the largest value of each of its channels.

    Args:
        clip: the population's, ∞ for none.  λ is at most that, so that the spiking network has the
            bounds that the analog one was trained with.
        largest: by channel.
        per_channel: whether to give one λ a channel.  A channel with nothing above 0 gets the
            layer's, as any λ does for it; a layer with nothing above 0 its clip, or 1.

    Returns:
        A number, or an array ``[c]``.  (The shape of the clip, where that is no scalar.)
    """
    bound = np.asarray(clip)
    layer = largest.max() if largest.max() > 0 else np.where(np.isfinite(bound), bound, 1).max()
    norm = np.where(largest > 0, largest, layer) if per_channel else layer
    norm = np.minimum(norm, bound)
    return norm if norm.ndim else float(norm)
