"""Accuracy against latency: one pass over time gives every T up to the last."""

from collections.abc import Callable, Iterable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.graph import Graph
from tcl_jax.promotion import implicit
from tcl_jax.simulation.dynamics import State
from tcl_jax.simulation.readout import check_labels, classes_in
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times, classify


def correct_by_latency(
    graph: Graph,
    x: Real[Array, "b ..."],
    labels: Int[Array, "b ..."] | Bool[Array, "b ..."],
    mask: Bool[Array, " b"],
    timesteps: int,
    settings: Simulation = PAPER,
    top: int | tuple[int, ...] = 1,
) -> Int[Array, " t"] | Int[Array, "t k"]:
    """How many classes of a batch are right at t = 1, 2, ... `timesteps`.

    Simulation is causal, so that one scan gives the whole curve; only the sums leave it, and
    memory does not grow with T.

    Args:
        graph: the network.
        x: images.
        labels: their classes, as `tcl_jax.simulation.classify` gives them: one an image, or one a
            place where the output has more axes than the classes.
        mask: False where an image is padding.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        top: among how many of the first a right class may be; of several numbers, the last axis is
            theirs.

    Raises:
        InputError: `timesteps` or `top` is not above 0, the images do not fit the graph, or the
            labels not its output.
    """
    check_times(timesteps)
    right: Array = _correct(graph, x, labels, mask, timesteps, settings, top)
    return right


def lowered(
    graph: Graph,
    shape: tuple[int, ...],
    batch_size: int,
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    top: int | tuple[int, ...] = 1,
    sharding: jax.sharding.Sharding | None = None,
) -> jax.stages.Lowered:
    """The program of `correct_by_latency` for a batch that is not there, one class an image.

    Args:
        graph: the network; of arrays, or of `jax.ShapeDtypeStruct`.
        shape: of an image.
        batch_size: number of images.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        top: as `correct_by_latency` has it.
        sharding: of the batch, over the devices that the program is for; JAX's default when None.
    """
    check_times(timesteps)
    batch = (
        jax.ShapeDtypeStruct((batch_size, *of_one), dtype, sharding=sharding)
        for of_one, dtype in ((shape, np.float32), ((), np.int32), ((), np.bool_))
    )
    return _correct.lower(graph, *batch, timesteps, settings, top)


@partial(jax.jit, static_argnames=("timesteps", "top"))
def _correct(
    graph: Graph,
    x: Array,
    labels: Array,
    mask: Array,
    timesteps: int,
    settings: Simulation,
    top: int | tuple[int, ...] = 1,
) -> Int[Array, " t"] | Int[Array, "t k"]:
    def right(state: State, spikes: dict[str, Array], t: Array) -> Array:
        return correct(graph, state, labels, mask, settings, top)

    return all_steps(graph, x, timesteps, right, settings)[1]


def correct(
    graph: Graph,
    state: State,
    labels: Int[Array, "b ..."] | Bool[Array, "b ..."],
    mask: Bool[Array, " b"],
    settings: Simulation,
    top: int | tuple[int, ...] = 1,
) -> Int[Array, ""] | Int[Array, " k"]:
    """How many classes of a batch are right, those of padding left out.

    Args:
        graph: the network.
        state: at t.
        labels: the right classes.
        mask: False where an image is padding.
        settings: what it was simulated with.
        top: as `correct_by_latency` has it.

    Raises:
        InputError: `top` is not above 0, or there are not as many labels as classes.
    """
    if isinstance(top, tuple):
        return jnp.stack([correct(graph, state, labels, mask, settings, k) for k in top])
    if top < 1:
        raise InputError(f"must be at least 1, got {top}", "top")
    classes = classify(graph, state, settings)
    check_labels(classes.shape, labels.shape, mask.shape)
    images = mask.astype(bool).reshape(-1, *(1,) * (classes.ndim - 1))
    if top > 1:
        found = settings.readout.rank(state.output, graph.output.op, labels) < top
    else:
        with implicit():  # labels are of any type of whole numbers
            found = classes == labels
    return jnp.sum(found & images)


def latency_curve(
    graph: Graph,
    batches: Iterable[dict[str, Any]],
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    top: int | tuple[int, ...] = 1,
    cluster: Cluster | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> Float[np.ndarray, " t"] | Float[np.ndarray, "t k"]:
    """Accuracy at every latency up to `timesteps`, exact over batches of any size and padding.

    Args:
        graph: the network.
        batches: of ``{"image", "label", "mask"}``, images standardised, labels as
            `correct_by_latency` has them; laid over devices as the caller likes.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.
        top: as `correct_by_latency` has it: 5 for top-5 accuracy, ``(1, 5)`` for both.
        cluster: the processes, each of which has a part of the batches, or none; the curve is of
            all.  This one alone when None.
        done: told the number of images after each batch.

    Returns:
        Accuracy in [0, 1] at T = 1, 2, ..., over all classes of all images; the curve to a shorter
        T is a prefix of it.  Where `top` is several numbers, the last axis is theirs.

    Raises:
        InputError: `timesteps` is not above 0, the images do not fit the graph or the labels not
            its output, or there are none.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.eye(2), [jnp.ones((1, 2))])
    >>> images, labels = jnp.array([[0.4, 0.6], [0.9, 0.1]]), jnp.array([1, 0])
    >>> batch = {"image": images, "label": labels, "mask": jnp.array([True, True])}
    >>> simulation.latency_curve(graph, [batch], timesteps=2).tolist()
    [0.5, 1.0]
    """
    check_times(timesteps)

    def of_batch(batch: dict[str, Any]) -> Any:
        x, labels, mask = (jnp.asarray(batch[of]) for of in ("image", "label", "mask"))
        right = correct_by_latency(graph, x, labels, mask, timesteps, settings, top)
        return right, classes_in(labels, mask)

    (right, classes), _images = sum_over(batches, of_batch, done, cluster)
    return np.asarray(right / classes)


def sum_over(
    batches: Iterable[dict[str, Any]],
    of_batch: Callable[[dict[str, Any]], Any],
    done: Callable[[int], None] = lambda images: None,
    cluster: Cluster | None = None,
) -> tuple[Any, int]:
    """Sums of what is counted in every batch, in 64 bits, and the number of images.

    Args:
        batches: with a ``mask`` that tells images from padding.
        of_batch: from a batch to a tree of whole numbers.
        done: told the number of images after each batch.
        cluster: the processes over which the sums are; this one alone when None.

    Raises:
        InputError: there are no images.

    >>> import numpy as np
    >>> from tcl_jax.simulation.latency import sum_over
    >>> batches = [{"mask": np.array([True, True])}, {"mask": np.array([True, False])}]
    >>> total, images = sum_over(batches, lambda batch: {"rows": batch["mask"]})
    >>> total["rows"].tolist(), images
    ([2, 1], 3)
    """
    total, seen = None, 0
    for batch in batches:
        found = jax.tree.map(lambda v: np.asarray(v, np.int64), of_batch(batch))
        total = _sum(total, found)
        images = int(np.sum(batch["mask"]))
        seen += images
        done(images)
    if cluster is not None:
        totals, counts = zip(*cluster.gather((total, seen)), strict=True)
        total, seen = reduce(_sum, totals), sum(counts)
    if not seen:
        raise InputError("there are no images to simulate: give at least one batch")
    return total, seen


def _sum(a: Any, b: Any) -> Any:
    """Of two trees; None is the sum of no batches."""
    return b if a is None else a if b is None else jax.tree.map(np.add, a, b)
