"""Adaptive latency: an image is simulated only until its class is safe.

The *margin* of a decision is what the output neuron that is ahead has taken in, or fired, minus the
most of the others (`tcl_jax.simulation.margins`).  An image stops at the first t whose margin
reaches a bound, or at T.  The bound is one number, found on images that no figure is of; simulation
is causal, so that one pass over them shows what any bound does.

Images that stop give their place in the batch to the next ones (continuous batching), and once none
wait, the batch shrinks to those that are left.  How often it is looked which have stopped follows
from how many have.
"""

import math
from collections.abc import Callable, Iterable, Iterator
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
from tcl_jax.promotion import wider
from tcl_jax.simulation.dynamics import State, init_state, read_from, step
from tcl_jax.simulation.margins import CHARGE, Margin
from tcl_jax.simulation.readout import check_labels
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times, classify


def read(
    graph: g.Graph, state: State, settings: Simulation = PAPER, margin: Margin = CHARGE
) -> tuple[Int[Array, " b"], Float[Array, " b"]]:
    """The class at some t, and its margin.

    Args:
        graph: the network, of one class an image.
        state: at t.
        settings: what it was simulated with.
        margin: what of the output neurons is compared.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> from tcl_jax.simulation.adaptive import read
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(2), [jnp.ones((1, 2))])
    >>> state = simulation.simulate(graph, jnp.array([[0.25, 0.75]]), timesteps=8)
    >>> classes, margin = read(graph, state)
    >>> classes.item(), margin.item()
    (1, 4.0)
    """
    _check_single_class(g.shapes(graph)[graph.output.name])
    classes = classify(graph, state, settings)
    return classes, margin(settings.readout, state.output, graph.output.op, classes)


@dataclass(frozen=True)
class Record:
    """Decisions at every t of images that were simulated to the last one.

    Attributes:
        classes: as read at t = 1, 2, ...
        margins: theirs.
        labels: the right ones.
    """

    classes: Int[np.ndarray, "t n"]
    margins: Float[np.ndarray, "t n"]
    labels: Int[np.ndarray, " n"]

    @property
    def accuracy(self) -> Float[np.ndarray, " t"]:
        """In [0, 1], at fixed T = 1, 2, ..."""
        return np.asarray(np.mean(self.classes == self.labels, -1))

    def stopped(self, bound: float) -> "Decisions":
        """What images are decided to be, and when, under a bound on the margin."""
        reached = self.margins >= bound
        reached[-1] = True
        at = np.argmax(reached, 0)
        return Decisions(self.classes[at, np.arange(at.size)], at + 1, self.labels)


@dataclass(frozen=True)
class Decisions:
    """Adaptive decisions.

    Attributes:
        classes: what each image was taken for.
        steps: the t at which it was.
        labels: the right classes.
    """

    classes: Int[np.ndarray, " n"]
    steps: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return float(np.mean(self.classes == self.labels))

    @property
    def mean_steps(self) -> float:
        """The mean latency."""
        return float(np.mean(self.steps))


def record(
    graph: g.Graph,
    batches: Iterable[dict[str, Any]],
    timesteps: int,
    settings: Simulation = PAPER,
    margin: Margin = CHARGE,
    *,
    done: Callable[[int], None] = lambda images: None,
) -> Record:
    """Simulate images to the end, and keep class and margin at every t.

    Args:
        graph: the network.
        batches: as `latency_curve` takes them.
        timesteps: the longest latency T.
        settings: neurons, readout and their numbers; until a delay has passed, margins are −∞.
        margin: what of the output neurons is compared.
        done: told the number of images after each batch.

    Raises:
        InputError: `timesteps` is not above 0, the images do not fit the graph or the labels not
            its output, images have several classes, or there are none.
    """
    check_times(timesteps)
    found = []
    for batch in batches:
        labels, kept = np.asarray(batch["label"]), np.asarray(batch["mask"], bool)
        classes, margins = _record(graph, jnp.asarray(batch["image"]), timesteps, settings, margin)
        check_labels(classes.shape[1:], labels.shape, kept.shape)
        found.append((np.asarray(classes)[:, kept], np.asarray(margins)[:, kept], labels[kept]))
        done(int(kept.sum()))
    if not found:
        raise InputError("there are no images to simulate: give at least one batch")
    classes, margins, labels = (np.concatenate(part, -1) for part in zip(*found, strict=True))
    margins[: settings.delay] = -np.inf
    return Record(classes, margins, labels)


@partial(jax.jit, static_argnames="timesteps")
def _record(
    graph: g.Graph,
    x: Real[Array, "b ..."],
    timesteps: int,
    settings: Simulation,
    margin: Margin,
) -> tuple[Int[Array, "t b"], Float[Array, "t b"]]:
    def reading(state: State, spikes: dict[str, Array], t: Array) -> tuple[Array, Array]:
        return read(graph, state, settings, margin)

    return all_steps(graph, x, timesteps, reading, settings)[1]


def calibrate(held_out: Record, max_loss: float) -> float:
    r"""The lowest bound that keeps accuracy, by conformal risk control.

    .. math:: \hat b = \inf \Bigl\{ b : \frac{1 + \sum_i L_i(b')}{n + 1} \le \alpha
              \text{ for all } b' \ge b \Bigr\}

    where L tells of an image that it is right at fixed T and wrong as it stops (Angelopoulos et al.
    2022, "Conformal risk control").  The 1 stands for an image that is still to come: of images
    like the held-out ones, at most a part α is spoiled on average, which is the most accuracy that
    can be lost.

    Args:
        held_out: of n images that decide the bound: others than those that figures are of.
        max_loss: α, accuracy that may be lost against fixed T, in (0, 1).

    Returns:
        The bound; ∞, which lets every image run to T, if no other will do.

    Raises:
        InputError: `max_loss` is out of range, or too small to be told from so few images.

    >>> import numpy as np
    >>> from tcl_jax.simulation.adaptive import Record, calibrate
    >>> classes = np.array([[0, 1], [1, 1], [1, 1]])  # the first image changes its mind
    >>> margins = np.array([[0.5, 1.0], [1.0, 2.0], [2.0, 3.0]])
    >>> held_out = Record(classes, margins, labels=np.array([1, 1]))
    >>> bound = calibrate(held_out, max_loss=0.4)
    >>> bound, held_out.stopped(bound).steps.tolist()
    (1.0, [2, 1])
    """
    images = held_out.labels.size
    check_calibration(max_loss, images)
    finite = held_out.margins[np.isfinite(held_out.margins)]
    # A thousand bounds, each as many decisions from the next, are finer than the loss is known.
    bounds = np.unique(np.quantile(finite, np.linspace(0, 1, 1001), method="nearest"))
    right = held_out.classes[-1] == held_out.labels
    safe = float("inf")
    for bound in bounds[::-1].tolist():
        spoiled = right & (held_out.stopped(bound).classes != held_out.labels)
        if (int(spoiled.sum()) + 1) / (images + 1) > max_loss:
            break
        safe = bound
    return safe


def check_calibration(max_loss: float, images: int) -> None:
    """Raises InputError where a loss, a part of one, cannot be told from so many images."""
    if not 0 < max_loss < 1:
        raise InputError(f"must lie between 0 and 100 points, got {100 * max_loss:g}", "max_loss")
    if 1 / (images + 1) > max_loss:
        raise InputError(
            f"a loss of {100 * max_loss:g} points cannot be told from {images} images: allow more, "
            f"or give calibration_images={math.ceil(1 / max_loss) - 1} or more"
        )


class _Slots(NamedTuple):
    """Places in the batch: the neurons' state, steps simulated, and once decided, when and what."""

    state: State
    t: Int[Array, " b"]
    stopped: Int[Array, " b"]
    classes: Int[Array, " b"]


def decide(
    graph: g.Graph,
    batches: Iterable[dict[str, Any]],
    bound: float,
    timesteps: int,
    settings: Simulation = PAPER,
    margin: Margin = CHARGE,
    *,
    slots: int = 100,
    cluster: Cluster | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> Decisions:
    """Simulate each image until its margin reaches the bound, and the next one in its place.

    Decisions are those of ``record(...).stopped(bound)`` by that margin, in the order of images.

    Args:
        graph: the network.
        batches: as `latency_curve` takes them, of any size.
        bound: on the margin.
        timesteps: the longest latency T.
        settings: neurons, readout and their numbers; the coding is one of a constant current.
        margin: what of the output neurons is compared.
        slots: images that are simulated at the same time; fewer once no others wait.
        cluster: the devices of this process that the slots are laid over; JAX's default when None.
        done: told the number of images that have just finished.

    Raises:
        InputError: a number is not above 0, the coding is of spikes, the images do not fit the
            graph or the labels not its output, images have several classes, or there are none.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert
    >>> from tcl_jax.simulation.adaptive import decide
    >>> graph = convert(lambda w, x: clip(jax.nn.relu(x), 1.0) @ w, jnp.eye(2), [jnp.ones((1, 2))])
    >>> x = jnp.array([[0.0, 1.0], [0.5, 0.25], [1.0, 0.0]])
    >>> batch = {"image": x, "label": jnp.array([1, 0, 0]), "mask": jnp.ones(3, bool)}
    >>> found = decide(graph, [batch], bound=2.0, timesteps=20, slots=2)
    >>> found.classes.tolist(), found.steps.tolist()
    ([1, 0, 0], [2, 6, 2])
    """
    check_times(timesteps)
    check_coding(settings)
    if slots < 1:
        raise InputError(f"must be at least 1, got {slots}", "slots")
    _check_single_class(g.shapes(graph)[graph.output.name])
    place = jnp.asarray if cluster is None else cluster.put
    devices = 1 if cluster is None else cluster.mesh.size
    waiting = _single(batches)
    real = wider(graph.dtype, jnp.float32)
    images = np.zeros((slots, *graph.input.op.shape), real)
    number = np.full(slots, -1)  # of the image in each slot
    labels: list[int] = []
    found: dict[int, tuple[int, int]] = {}
    nothing = jnp.zeros(slots, jnp.int32)
    empty = _Slots(init_state(graph, slots, settings), nothing, nothing, nothing)
    at = jax.tree.map(place, jax.device_get(empty))
    least, steps = np.asarray(bound, real), 1
    while True:
        fresh = np.zeros(number.size, bool)
        free = np.flatnonzero(number < 0)
        for slot, (image, label) in zip(free, waiting, strict=False):
            images[slot], number[slot], fresh[slot] = image, len(labels), True
            labels.append(label)
        taken = np.flatnonzero(number >= 0)
        if not taken.size:
            break
        if (size := _fewer(taken.size, number.size, devices)) < number.size:
            kept = np.argsort(number < 0, kind="stable")[:size]
            images, number, fresh = images[kept], number[kept], fresh[kept]
            at = jax.tree.map(lambda a, kept=kept: place(np.asarray(a)[kept]), at)
        # JAX may still read from a NumPy array that it was given.
        inputs = {"x": place(images.copy()), "fresh": place(fresh)}
        at = _advance(graph, at, inputs, least, timesteps, steps, settings, margin)
        stopped, classes = np.asarray(at.stopped), np.asarray(at.classes)
        finished = np.flatnonzero((stopped > 0) & (number >= 0))
        for slot in finished:
            found[number[slot]] = (int(classes[slot]), int(stopped[slot]))
        number[finished] = -1
        done(finished.size)
        steps = _pace(steps, finished.size / number.size)
    if not labels:
        raise InputError("there are no images to simulate: give at least one batch")
    decided, stops = zip(*(found[n] for n in range(len(labels))), strict=True)
    return Decisions(np.array(decided), np.array(stops), np.array(labels))


def _fewer(taken: int, slots: int, devices: int) -> int:
    """Slots for so many images: a quarter, and again, while all have room; as devices divide them.

    Each number of slots is compiled once.
    """
    while (quarter := -(-slots // (4 * devices)) * devices) < slots and taken <= quarter:
        slots = quarter
    return slots


def _pace(steps: int, finished: float) -> int:
    """Steps until the next look at which images are finished, after a look that found this part.

    While they are simulated finished ones hold their slots; a look takes time, too.
    """
    if finished > 1 / 8:
        return max(1, steps // 2)
    return min(_MOST_STEPS, 2 * steps) if finished < 1 / 16 else steps


_MOST_STEPS = 32


def _single(batches: Iterable[dict[str, Any]]) -> Iterator[tuple[np.ndarray, int]]:
    """One image after the other, without padding."""
    for batch in batches:
        x, labels = np.asarray(batch["image"]), np.asarray(batch["label"])
        mask = np.asarray(batch["mask"], bool)
        check_labels(x.shape[:1], labels.shape, mask.shape)
        yield from zip(x[mask], labels[mask].tolist(), strict=True)


def check_coding(settings: Simulation) -> None:
    """Raises InputError where images are fed as spikes: each would need a time of its own."""
    if not settings.coding.constant:
        raise InputError('adaptive latency is for images fed as currents: leave coding="analog"')


def _check_single_class(output: tuple[int, ...]) -> None:
    if places := "×".join(map(str, output[:-1])):
        raise InputError(
            "adaptive latency ends an image as its class is safe, but the network gives a class to "
            f"each of its {places} places: simulate it to fixed T"
        )


@jax.jit
def _advance(
    graph: g.Graph,
    at: _Slots,
    inputs: dict[str, Array],
    bound: Float[Array, ""],
    timesteps: Int[Array, ""] | int,
    steps: Int[Array, ""] | int,
    settings: Simulation,
    margin: Margin,
) -> _Slots:
    """So many steps of all slots, of which the fresh ones start anew."""
    x, fresh = inputs["x"], inputs["fresh"]
    start = jnp.zeros_like(at.t)
    new = _Slots(init_state(graph, x.shape[0], settings), start, start, start)
    at = jax.tree.map(lambda a, b: jnp.where(_rows(fresh, a), b, a), at, new)
    constant = g.constant_values(graph, x)

    def body(_: Int[Array, ""], at: _Slots) -> _Slots:
        state, _spikes = step(graph, at.state, constant, settings)
        t = at.t + 1
        begun = t > settings.delay
        state = state._replace(output=read_from(at.state.output, state.output, begun))
        classes, ahead = read(graph, state, settings, margin)
        safe = (ahead >= bound) & begun | (t == timesteps)
        now = safe & (at.stopped == 0)
        stopped = jnp.where(now, t, at.stopped)
        return _Slots(state, t, stopped, jnp.where(now, classes, at.classes))

    # Not until some are finished, which devices would have to tell each other at every step.
    after: _Slots = jax.lax.fori_loop(0, steps, body, at)
    return after


def _rows(which: Bool[Array, " b"], like: Array) -> Bool[Array, "b ..."]:
    return which.reshape(-1, *(1,) * (like.ndim - 1))
