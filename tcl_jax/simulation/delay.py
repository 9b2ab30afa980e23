"""When to start reading: the step from which a network's output carries information."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Real

from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.graph import Graph, Output
from tcl_jax.registry import Choices
from tcl_jax.simulation.latency import latency_curve
from tcl_jax.simulation.readout import Readout
from tcl_jax.simulation.settings import PAPER, Simulation

_ALONE: Choices[Readout] = Choices("readout")


@_ALONE.register("latest")
@dataclass(frozen=True)
class _Latest(Readout):
    """The current of one step alone: nothing is kept of those before."""

    def init(self, nothing: Real[Array, "b ..."]) -> Array:
        return nothing

    def update(
        self, state: Array, current: Real[Array, "b ..."], output: Output
    ) -> tuple[Array, Bool[Array, "b ..."]]:
        return current, current < current  # no neuron fires

    def charge(self, state: Array, output: Output) -> Real[Array, "b ..."]:
        return state


def estimate_delay(
    graph: Graph,
    batches: Iterable[dict[str, Any]],
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    cluster: Cluster | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> int:
    r"""How many first steps to leave out, in which the output does not tell classes yet.

    Layers fill up one after another, so that for some steps a deep network's output is of biases
    and of what few neurons fired.  With a(t) the accuracy of classes read from the current of step
    t alone, the delay d is the number of steps before the first at which it is half way from chance
    to what it comes to:

    .. math:: d = \min \Bigl\{ t : a(t) \ge \tfrac12 (a_0 + a_\infty) \Bigr\} - 1

    where a₀ is the share of the commonest class, and a∞ the mean of a over the last quarter of all
    steps.  A rule of ours: literature on conversion chooses delays by hand, or adds up how long
    each layer takes to its first spikes.

    Args:
        graph: the network.
        batches: as `latency_curve` takes them, of other images than figures are of.
        timesteps: T, in which the network comes near its rates.
        settings: neurons, coding and their numbers; its readout and its delay do not matter.
        cluster: the processes, each of which has a part of the batches, or none.
        done: told the number of images after each batch.

    Returns:
        A delay for `Simulation`, below T.

    Raises:
        InputError: as `latency_curve`; or classes are not told by the last steps either.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> from tcl_jax.simulation.delay import estimate_delay
    >>> def network(w, x):  # at a rate of 1/4: the first spikes arrive in the 4th step
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> images, labels = jnp.array([[0.25, 0.0], [0.0, 0.25]]), jnp.array([0, 1])
    >>> batch = {"image": images, "label": labels, "mask": jnp.array([True, True])}
    >>> estimate_delay(graph, [batch], timesteps=40)
    3
    """
    counts: dict[int, int] = {}

    def counted() -> Iterator[dict[str, Any]]:
        for batch in batches:
            labels = np.asarray(batch["label"])[np.asarray(batch["mask"], bool)]
            for label, number in zip(*np.unique(labels, return_counts=True), strict=True):
                counts[int(label)] = counts.get(int(label), 0) + int(number)
            yield batch

    alone = replace(settings, readout=_Latest(), delay=0)
    accuracy = latency_curve(graph, counted(), timesteps, alone, cluster=cluster, done=done)
    of_all: dict[int, int] = {}
    for part in [counts] if cluster is None else cluster.gather(counts):
        for label, number in part.items():
            of_all[label] = of_all.get(label, 0) + number
    chance = max(of_all.values()) / sum(of_all.values())
    in_the_end = float(np.mean(accuracy[-max(1, timesteps // 4) :]))
    if in_the_end <= chance:
        raise InputError(
            f"the current of no step up to T = {timesteps} tells classes better than one guess for "
            "all does, so that there is no delay to be found: give more timesteps, or a delay"
        )
    return int(np.argmax(accuracy >= (chance + in_the_end) / 2))
