"""What a simulation did: spikes and synaptic operations of every layer and image, and their energy.

`tcl_jax.simulation.operations` says what counts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from tcl_jax import graph as g
from tcl_jax.cluster import Cluster
from tcl_jax.simulation.dynamics import State, spike_counts
from tcl_jax.simulation.latency import correct, sum_over
from tcl_jax.simulation.operations import (
    FLOAT32,
    FanOut,
    OperationCost,
    Operations,
    analog_operations,
    fan_outs,
)
from tcl_jax.simulation.readout import classes_in
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times


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
        layers: in order; the output's comes last.
        by_image: synaptic operations of every image at t = 1, 2, ...
        analog: operations that an analog input costs an image.
        analog_inputs: how many of these there were by t = 1, 2, ...: 1 where it is constant.
        ann: operations of the analog network for an image.
        potentials: bytes of all membrane potentials of an image.
    """

    layers: tuple[LayerActivity, ...]
    by_image: Int[np.ndarray, "t n"]
    analog: Operations
    analog_inputs: Int[np.ndarray, " t"]
    ann: Operations
    potentials: int

    @property
    def images(self) -> int:
        """Their number."""
        return len(self.by_image.T)

    def rates(self, timesteps: int) -> dict[str, float]:
        """Spikes a neuron and step in the first `timesteps` steps, by layer."""
        return {
            layer.name: int(layer.spikes[:timesteps].sum())
            / (self.images * layer.neurons * timesteps)
            for layer in self.layers
        }

    def operations(self) -> Float[np.ndarray, " t"]:
        """Synaptic operations (ACs) of an image up to T = 1, 2, ..., on average."""
        return np.asarray(np.cumsum(self.by_image.sum(1)) / self.images)

    def total(self) -> tuple[Int[np.ndarray, " t"], Float[np.ndarray, " t"]]:
        """MACs and ACs of an image up to T = 1, 2, ..., on average, its analog inputs counted."""
        inputs = self.analog_inputs
        return self.analog.macs * inputs, self.analog.additions * inputs + self.operations()

    def energy(self, cost: OperationCost = FLOAT32) -> Float[np.ndarray, " t"]:
        r"""Energy of an image up to T = 1, 2, ..., on average, in pJ.

        .. math:: E(T) = C(T) E_{MAC} N_{MAC} + E_{AC} \sum_{t \le T} N_{AC}(t)

        with the number C of analog inputs up to T, 1 of an image.
        """
        return self.analog.energy(cost) * self.analog_inputs + cost.ac * self.operations()

    def energies(self, cost: OperationCost = FLOAT32) -> Float[np.ndarray, "t n"]:
        """The same of every single image."""
        inputs = self.analog_inputs[:, None]
        return self.analog.energy(cost) * inputs + cost.ac * np.cumsum(self.by_image, 0)

    def traffic(self) -> Float[np.ndarray, " t"]:
        """Bytes of membrane potentials that are read and written up to T = 1, 2, ..., an image.

        Of a simulation, and of hardware that updates every neuron at every step; what is updated by
        events alone reads and writes one potential for each addition.
        """
        return 2.0 * self.potentials * np.arange(1, len(self.by_image) + 1)


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

    All in one pass; what leaves the scan is a few integers for each image, step and layer.

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
        InputError: as `latency_curve`.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.energy import measure
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x @ w), 1.0) @ w
    >>> graph = convert(network, jnp.array([[1.0, 0.25], [0.25, 1.0]]), [jnp.ones((1, 2))])
    >>> x, mask = jnp.array([[0.5, 1.0]]), jnp.array([True])
    >>> _, activity = measure(graph, [{"image": x, "label": jnp.array([1]), "mask": mask}], 4)
    >>> activity.analog.macs, activity.operations().tolist()  # one spike, then two a step
    (4, [2.0, 6.0, 10.0, 14.0])
    """
    check_times(timesteps)
    counted = graph if counted is None else counted
    synapses = fan_outs(counted)
    inputs = settings.coding.analog_inputs(np.arange(1, timesteps + 1))
    if inputs.any():
        del synapses[graph.input.name]

    images: list[np.ndarray] = []

    def of_batch(batch: dict[str, Any]) -> Any:
        x, labels, mask = (jnp.asarray(batch[of]) for of in ("image", "label", "mask"))
        right, fired = _of_batch(graph, synapses, x, labels, mask, timesteps, settings, top)
        kept = np.asarray(mask, bool)
        spikes = {name: np.asarray(v, np.int64)[:, kept] for name, v in fired.items()}
        caused = {name: v @ np.asarray(synapses[name].values) for name, v in spikes.items()}
        images.append(sum(caused.values(), np.zeros((timesteps, int(kept.sum())), np.int64)))
        of_layers = {n: (spikes[n].sum((1, 2)), caused[n].sum(1)) for n in spikes}
        return right, of_layers, classes_in(labels, mask)

    (right, found, classes), _ = sum_over(batches, of_batch, done, cluster)
    by_image = np.concatenate([np.zeros((timesteps, 0), np.int64), *images], 1)
    if cluster is not None:
        by_image = np.concatenate(cluster.gather(by_image), 1)
    layers = tuple(LayerActivity(n, s.index.size, *found[n]) for n, s in synapses.items())
    analog = analog_operations(counted, first=True) if inputs.any() else Operations(0, 0)
    shapes = g.shapes(counted)
    neurons = sum(int(np.prod(shapes[n.name])) for n in counted.spiking)
    potentials = neurons * np.dtype(graph.dtype).itemsize
    ann = analog_operations(counted)
    return right / classes, Activity(layers, by_image, analog, inputs, ann, potentials)


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
) -> tuple[Int[Array, " t"] | Int[Array, "t k"], dict[str, Int[Array, "t b k"]]]:
    """Classes that are right, and spikes by layer, image and fan-out, at every step."""

    def observe(state: State, spikes: dict[str, Array], t: Array) -> tuple[Array, dict[str, Array]]:
        right = correct(graph, state, labels, mask, settings, top)
        events = {n.name: spike_counts(spikes[n.name], n.op.threshold) for n in graph.spiking}
        if graph.input.name in synapses:
            events[graph.input.name] = spikes[graph.input.name] != 0
        return right, {n: _by_fan_out(s, events[n]) for n, s in synapses.items()}

    return all_steps(graph, x, timesteps, observe, settings)[1]


def _by_fan_out(
    synapses: FanOut, events: Bool[Array, "b ..."] | Int[Array, "b ..."]
) -> Int[Array, "b k"]:
    """Numbers of spikes in a step, by image and by the fan-out of their site."""
    fired = events.astype(jnp.int32).reshape(events.shape[0], -1, 1)
    # k is small: comparing with every value costs less than a scatter.
    which = (
        synapses.index.reshape(1, -1, 1)
        == jnp.arange(len(synapses.values), dtype=jnp.int32)[None, None]
    )
    return jnp.sum(jnp.where(which, fired, 0), 1)
