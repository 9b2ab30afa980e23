"""Synaptic operations: what a spike and an image cost, and the energy that stands for.

What counts.  A spike is an *event* at its neuron's site.  At every synapse on its way to the next
neurons it costs one addition (an accumulate, AC) for each connection that it meets:

- at a convolution or linear map, each weight that its site feeds; none on a border, where the
  window reaches beyond the map; weights that are zero count as any other;
- at a pool or a sum over axes, each window that its site lies in: a synapse of its own, whose
  weight is the pool's factor;
- where it reaches neurons through no synapse, as by the identity shortcut of a residual block, one.

Reshape, transpose, pad, slice, concatenation, scale and add cost nothing: they hand events on, and
so does a synapse that another follows, as a pool does before a convolution.  Events are never
merged on the way: two spikes in a window of a pool arrive as two.

A constant current costs multiply-accumulates (MACs), once an image: the first layer's currents are
the same at every step.  Images fed as spikes are events.  Biases, thresholds, resets and moving
numbers to and from memory are left out, on both sides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.pytrees import pytree

_Values = dict[str, Any]
_Passing = tuple[Array, Array]
"""Events on their way, and those of them that have met no synapse yet."""


@dataclass(frozen=True)
class OperationCost:
    """Energy of the two operations, in pJ.

    The default is that of 32-bit floats at 45 nm: 0.9 pJ an addition, 3.7 pJ a multiplication
    (M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014, Fig.
    1.1.9).
    """

    ac: float = 0.9
    """Energy of an addition, in pJ."""
    mac: float = 4.6
    """Energy of a multiplication and an addition, in pJ."""

    def __post_init__(self) -> None:
        for name, value in (("ac", self.ac), ("mac", self.mac)):
            if not 0 <= value < float("inf"):
                raise InputError(f"must be finite and not negative, got {value} pJ", name)


FLOAT32 = OperationCost()
"""32-bit floats, as the literature on spiking networks reckons."""
INT8 = OperationCost(ac=0.03, mac=0.23)
"""8-bit integers, from the same table: 0.03 pJ an addition, 0.2 pJ a multiplication."""


class Operations(NamedTuple):
    """Numbers of operations for one image."""

    macs: int
    additions: int

    def energy(self, cost: OperationCost) -> float:
        """In pJ.

        >>> from tcl_jax.simulation.operations import FLOAT32, Operations
        >>> Operations(macs=100, additions=100).energy(FLOAT32)
        550.0
        """
        return self.macs * cost.mac + self.additions * cost.ac


@pytree("index")
@dataclass(frozen=True)
class FanOut:
    """Synaptic operations that one spike causes, by the site of its neuron.

    A layer has few different fan-outs, one inside and some at its borders, so that counting spikes
    by fan-out, in integers, gives exact sums where their product would outgrow 32 bits.

    Attributes:
        index: of every site, which of `values`.
        values: the different fan-outs.
    """

    index: Int[Array, "..."]
    values: tuple[int, ...]

    @property
    def sites(self) -> Int[np.ndarray, "..."]:
        """The fan-out of every site."""
        found: np.ndarray = np.asarray(self.values, np.int64)[np.asarray(self.index)]
        return found


def fan_outs(graph: g.Graph) -> dict[str, FanOut]:
    """The fan-out of every site of the input and of every layer of neurons.

    Sums of operations are linear in events, so that the fan-out of a site is the gradient of the
    operations by the events at it: the transpose of the affine nodes with all weights one.

    Args:
        graph: as converted.  One that `lower` has been at has linear maps in place of some
            convolutions, whose structural zeros would count as weights.

    Returns:
        Fan-outs by name, the output's (nothing) included.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.operations import fan_outs
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.ones((2, 3)), [jnp.ones((1, 2))])
    >>> [fan_out.sites.tolist() for fan_out in fan_outs(graph).values()]
    [[1, 1], [3, 3], [0, 0, 0]]
    """
    shapes = g.shapes(graph)
    sources = [graph.input.name, *(n.name for n in graph.neurons)]
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        none = {name: jnp.zeros((1, *shapes[name])) for name in sources}
        found = {name: np.asarray(v[0]) for name, v in _by_site(graph, none).items()}
    found[graph.output.name] = np.zeros(shapes[graph.output.name])
    return {name: _by_value(found[name]) for name in [*sources, graph.output.name]}


@jax.jit
def _by_site(graph: g.Graph, events: _Values) -> _Values:
    def operations(events: _Values) -> Array:
        return sum(_operations(graph, events), jnp.zeros(()))

    fan_outs: _Values = jax.grad(operations)(events)
    return fan_outs


def _by_value(sites: Float[np.ndarray, "..."]) -> FanOut:
    values, index = np.unique(np.rint(sites).astype(np.int64), return_inverse=True)
    index = index.reshape(sites.shape).astype(np.int32)
    return FanOut(jnp.asarray(index), tuple(values.tolist()))


def analog_operations(graph: g.Graph, *, first: bool = False) -> Operations:
    """Operations of one image through the analog network: MACs at weights, additions elsewhere.

    Connections are counted as those of spikes are, without what falls on padding, which
    `Op.macs` has in; and values are summed before they are handed on.

    Args:
        graph: as converted.
        first: only what the image itself reaches, up to the first neurons: what a constant
            current costs the spiking network.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.operations import analog_operations
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 1.0).sum(-1, keepdims=True)
    >>> graph = convert(network, jnp.ones((2, 3)), [jnp.ones((1, 2))])
    >>> analog_operations(graph)
    Operations(macs=6, additions=3)
    """
    shapes = g.shapes(graph)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        live = {n.name: jnp.full((1, *shapes[n.name]), float(not first)) for n in graph.neurons}
        live[graph.input.name] = jnp.ones((1, *shapes[graph.input.name]))
        found = _of_live(graph, live)
        return Operations(*(round(float(v)) for v in found))


@jax.jit
def _of_live(graph: g.Graph, live: _Values) -> tuple[Array, Array]:
    return _operations(graph, live, lambda x: jnp.minimum(x, 1))


def _operations(
    graph: g.Graph, events: _Values, merge: Callable[[Array], Array] = lambda x: x
) -> tuple[Array, Array]:
    """Operations at weights, and at pools and identities, that events at the sources cause.

    Args:
        graph: any.
        events: their number at every site of the input and the neurons.
        merge: what a node hands on of its events; all of them, if not said otherwise.
    """
    counted = {"weight": jnp.zeros(()), "sum": jnp.zeros(())}

    def hand_on(node: g.Node[g.Op], *read: _Passing) -> _Passing:
        arrived, direct = (node.op.paths(*ways) for ways in zip(*read, strict=True))
        if node.op.synapse:
            counted[node.op.synapse] += jnp.sum(arrived)
            direct = jnp.zeros_like(arrived)
        return merge(arrived), merge(direct)

    def fire(node: g.Node[g.Population | g.Output], read: _Passing) -> _Passing:
        counted["sum"] += jnp.sum(read[1])
        own = events.get(node.name, read[0])
        return own, own

    start = events[graph.input.name]
    g.walk(graph, {graph.input.name: (start, start)}, hand_on, fire)
    return counted["weight"], counted["sum"]
