"""Synaptic operations of a simulation, counted from its spikes, and the energy they stand for.

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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from tcl_jax import graph as g
from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.promotion import against
from tcl_jax.pytrees import pytree
from tcl_jax.simulation.dynamics import State
from tcl_jax.simulation.latency import correct, sum_over
from tcl_jax.simulation.readout import classes_in
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times

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

        >>> from tcl_jax.simulation.energy import FLOAT32, Operations
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
    >>> from tcl_jax.simulation.energy import fan_outs
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
    >>> from tcl_jax.simulation.energy import analog_operations
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


@dataclass(frozen=True)
class LayerActivity:
    """What a layer of neurons did, summed over all images.

    Attributes:
        name: of its neurons, or of the input where that is fed as spikes.
        neurons: their number.
        spikes: at t = 1, 2, ...
        operations: synaptic operations that these caused.
    """

    name: str
    neurons: int
    spikes: Int[np.ndarray, " t"]
    operations: Int[np.ndarray, " t"]


@dataclass(frozen=True)
class Activity:
    """Spikes and operations of a simulation, of all images and at every step.

    Attributes:
        images: their number.
        layers: in order; the output's comes last.
        analog: operations that the constant input costs an image, once.
        ann: operations of the analog network for an image.
    """

    images: int
    layers: tuple[LayerActivity, ...]
    analog: Operations
    ann: Operations

    def rates(self, timesteps: int) -> dict[str, float]:
        """Spikes a neuron and step in the first `timesteps` steps, by layer."""
        return {
            layer.name: int(layer.spikes[:timesteps].sum())
            / (self.images * layer.neurons * timesteps)
            for layer in self.layers
        }

    def operations(self) -> Float[np.ndarray, " t"]:
        """Synaptic operations (ACs) of an image up to T = 1, 2, ..., on average."""
        steps = sum((layer.operations for layer in self.layers), np.zeros((), np.int64))
        return np.cumsum(steps) / self.images

    def energy(self, cost: OperationCost = FLOAT32) -> Float[np.ndarray, " t"]:
        r"""Energy of an image up to T = 1, 2, ..., on average, in pJ.

        .. math:: E(T) = E_{MAC} N_{MAC} + E_{AC} \sum_{t \le T} N_{AC}(t)
        """
        return self.analog.energy(cost) + cost.ac * self.operations()


def measure(
    graph: g.Graph,
    batches: Iterable[dict[str, Any]],
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    counted: g.Graph | None = None,
    top: int | tuple[int, ...] = 1,
    cluster: Cluster | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> tuple[Float[np.ndarray, " t"] | Float[np.ndarray, "t k"], Activity]:
    """Accuracy at every latency, as `latency_curve` has it, and what the network did meanwhile.

    All in one pass; what leaves the scan is a few integers for each step and layer.

    Args:
        graph: the network.
        batches: as `latency_curve` takes them.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        counted: the network before it was lowered; `graph` when None.
        top: as `latency_curve` takes it.
        cluster: as `latency_curve` takes it.
        done: told the number of images after each batch.

    Returns:
        Accuracy in [0, 1] at T = 1, 2, ..., and the activity.

    Raises:
        InputError: as `latency_curve`, or a batch could have more spikes in a step than 32 bits
            can count.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.energy import measure
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> x, mask = jnp.array([[0.5, 1.0]]), jnp.array([True])
    >>> _, activity = measure(graph, [{"image": x, "label": jnp.array([1]), "mask": mask}], 4)
    >>> activity.analog.macs, activity.operations().tolist()  # spikes: one, two, one, two
    (4, [2.0, 6.0, 8.0, 12.0])
    """
    check_times(timesteps)
    counted = graph if counted is None else counted
    synapses = fan_outs(counted)
    constant = settings.coding.constant
    if constant:
        del synapses[graph.input.name]

    def of_batch(batch: dict[str, Any]) -> Any:
        x, labels, mask = (jnp.asarray(batch[of]) for of in ("image", "label", "mask"))
        found = _of_batch(graph, synapses, x, labels, mask, timesteps, settings, top)
        return *found, classes_in(labels, mask)

    (right, spikes, classes), images = sum_over(batches, of_batch, done, cluster)
    layers = tuple(
        LayerActivity(name, s.index.size, spikes[name].sum(1), spikes[name] @ np.asarray(s.values))
        for name, s in synapses.items()
    )
    analog = analog_operations(counted, first=True) if constant else Operations(0, 0)
    return right / classes, Activity(images, layers, analog, analog_operations(counted))


@partial(jax.jit, static_argnames=("timesteps", "top"))
def _of_batch(
    graph: g.Graph,
    synapses: Mapping[str, FanOut],
    x: Real[Array, "b ..."],
    labels: Int[Array, "b ..."] | Bool[Array, "b ..."],
    mask: Bool[Array, " b"],
    timesteps: int,
    settings: Simulation,
    top: int | tuple[int, ...] = 1,
) -> tuple[Int[Array, " t"] | Int[Array, "t k"], dict[str, Int[Array, "t k"]]]:
    """Classes that are right, and spikes by layer and fan-out, at every step."""
    largest = max(s.index.size for s in synapses.values())
    if x.shape[0] * largest >= 2**31:
        raise InputError(
            f"a layer of {largest} neurons could fire more often in a step than 32 bits can count "
            f"with a batch of {x.shape[0]}: use batch_size={(2**31 - 1) // largest} or less"
        )

    def observe(state: State, spikes: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        right = correct(graph, state, labels, mask, settings, top)
        events = {n.name: _numbers(spikes[n.name], n.op.threshold) for n in graph.spiking}
        if not settings.coding.constant:
            events[graph.input.name] = spikes[graph.input.name] != 0
        return right, {n: _by_fan_out(s, events[n], mask) for n, s in synapses.items()}

    return all_steps(graph, x, timesteps, observe, settings)[1]


def _numbers(spikes: Real[Array, "b ..."], threshold: Real[Array, "..."]) -> Array:
    """Of spikes, of which a neuron can have several in a step."""
    if jnp.issubdtype(spikes.dtype, jnp.integer):
        return spikes
    return jnp.rint(spikes / against(threshold, spikes)).astype(jnp.int32)


def _by_fan_out(
    synapses: FanOut, events: Bool[Array, "b ..."] | Int[Array, "b ..."], mask: Bool[Array, " b"]
) -> Int[Array, " k"]:
    """Numbers of spikes in a step, by the fan-out of their site."""
    counts = mask.reshape(-1, *(1,) * (events.ndim - 1))
    fired = jnp.sum(events.astype(jnp.int32) * counts.astype(jnp.int32), 0).reshape(-1, 1)
    # k is small: comparing with every value costs less than a scatter.
    which = synapses.index.reshape(-1, 1) == jnp.arange(len(synapses.values))[None]
    return jnp.sum(jnp.where(which, fired, 0), 0)
