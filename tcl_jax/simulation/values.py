"""Error against latency: how near a spiking network's values come to those that they should be."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from tcl_jax import graph as g
from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError
from tcl_jax.promotion import alike
from tcl_jax.simulation.dynamics import State
from tcl_jax.simulation.latency import correct
from tcl_jax.simulation.readout import classes_in
from tcl_jax.simulation.settings import PAPER, Simulation
from tcl_jax.simulation.simulator import all_steps, check_times, logits


class ErrorCurve(NamedTuple):
    """How far values are from their targets, over all values of all images.

    Attributes:
        rms: the root of the mean square error, at T = 1, 2, ...
        largest: the largest absolute error, at the same T.
        scale: the root of the mean square of the targets: of what `rms` is a part.
        analog: the analog network's root mean square error; 0 where its values are the targets, and
            None of frames.
        accuracy: as `latency_curve` has it, where batches have labels.
    """

    rms: Float[np.ndarray, " t"]
    largest: Float[np.ndarray, " t"]
    scale: float
    analog: float | None
    accuracy: Float[np.ndarray, "..."] | None


def error_curve(
    graph: g.Graph,
    batches: Iterable[dict[str, Any]],
    timesteps: int,
    settings: Simulation = PAPER,
    *,
    analog: g.Graph | None = None,
    top: int | tuple[int, ...] = 1,
    cluster: Cluster | None = None,
    done: Callable[[int], None] = lambda images: None,
) -> ErrorCurve:
    r"""Error of the values at every latency, of any shape: regression, boxes, pixels, logits.

    .. math:: e(T) = \sqrt{\operatorname{mean}_i \, (y_i(T) - y_i)^2}

    with y(T) as `tcl_jax.simulation.logits` has it.  All in one pass, beside accuracy where there
    are labels.

    Args:
        graph: the network.
        batches: of ``{"image", "mask"}``, images standardised; with a ``value`` of the output's
            shape where that is what the network is to say, else the analog network's own values are
            the targets, and the error is the conversion's; with a ``label`` for accuracy.
        timesteps: the longest latency T.
        settings: neurons, coding, readout and their numbers.  Of frames targets are needed.
        analog: the network before it was lowered; `graph` when None.
        top: as `latency_curve` takes it.
        cluster: the processes, each of which has a part of the batches, or none; the curve is of
            all.  This one alone when None.
        done: told the number of images after each batch.

    Raises:
        InputError: `timesteps` is not above 0; images, values or labels do not fit the graph; there
            are none, or of some batches alone; or frames have no values.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip, convert, simulation
    >>> def network(w, x):
    ...     return clip(jax.nn.relu(x), 1.0) @ w
    >>> graph = convert(network, jnp.ones((2, 1)), [jnp.ones((1, 2))])
    >>> batch = {"image": jnp.array([[0.5, 0.25]]), "mask": jnp.array([True])}
    >>> simulation.error_curve(graph, [batch], timesteps=4).rms.round(2).tolist()
    [0.75, 0.25, 0.42, 0.0]
    """
    check_times(timesteps)
    analog = graph if analog is None else analog
    found = []
    for batch in batches:
        found.append(_of_images(graph, analog, batch, timesteps, settings, top))
        done(int(np.sum(batch["mask"])))
    if cluster is not None:
        found = [part for own in cluster.gather(found) for part in own]
    if not sum(part["values"] for part in found):
        raise InputError("there are no images to simulate: give at least one batch")
    if len({part.pop("given") for part in found}) > 1:
        raise InputError("some batches have values or labels and others none: give all of them")
    largest = np.max([part.pop("largest") for part in found], 0)
    total = {of: np.sum([part[of] for part in found], 0) for of in found[0]}
    root = {of: np.sqrt(total[of] / total["values"]) for of in ("spiking", "targets")}
    by_analog = np.sqrt(total["analog"] / total["values"]) if "analog" in total else None
    return ErrorCurve(
        root["spiking"],
        largest,
        float(root["targets"]),
        None if by_analog is None else float(by_analog),
        total["right"] / total["classes"] if "right" in total else None,
    )


def _of_images(
    graph: g.Graph,
    analog: g.Graph,
    batch: dict[str, Any],
    timesteps: int,
    settings: Simulation,
    top: int | tuple[int, ...],
) -> dict[str, Any]:
    """Sums over the images of a batch: of squares, of values and of what is right."""
    known = {of: jnp.asarray(v) for of, v in batch.items() if of in _OF_BATCH}
    targets = known.get("value")
    by_analog = g.evaluate(analog, known["image"]) if settings.coding.still else None
    if targets is None:
        if by_analog is None:
            raise InputError("frames have no analog values to compare with: give batches a value")
        targets = by_analog
    of_one = g.shapes(graph)[graph.output.name]
    if targets.shape != (*known["mask"].shape, *of_one):
        raise InputError(
            f"the values of a batch of {known['mask'].size} images have shape {targets.shape}, but "
            f"the network's have {(known['mask'].size, *of_one)}: give that"
        )
    squares, largest, right = _of_batch(graph, known, targets, timesteps, settings, top)
    kept = np.asarray(known["mask"], bool)
    found: dict[str, Any] = {
        "spiking": np.asarray(squares, np.float64)[:, kept].sum(1),
        "largest": np.asarray(largest)[:, kept].max(1, initial=0),
        "targets": _square(targets, kept),
        "values": int(kept.sum()) * math.prod(of_one),
        "given": ("value" in known, "label" in known),
    }
    if by_analog is not None:
        found["analog"] = _square(np.subtract(by_analog, targets), kept)
    if right is not None:
        found["right"] = np.asarray(right, np.int64)
        found["classes"] = classes_in(known["label"], known["mask"])
    return found


_OF_BATCH = ("image", "mask", "value", "label")


def _square(values: Any, kept: Bool[np.ndarray, " b"]) -> float:
    return float(np.square(np.asarray(values, np.float64)[kept]).sum())


@partial(jax.jit, static_argnames=("timesteps", "top"))
def _of_batch(
    graph: g.Graph,
    batch: dict[str, Array],
    targets: Real[Array, "b ..."],
    timesteps: int,
    settings: Simulation,
    top: int | tuple[int, ...],
) -> tuple[Float[Array, "t b"], Float[Array, "t b"], Int[Array, "t ..."] | None]:
    """Of each image the sum of squared errors and the largest one, and how many classes are right.

    Of an image, so that sums over images are the same however they are spread.
    """

    def observe(
        state: State, spikes: dict[str, Array], t: Array
    ) -> tuple[Array, Array, Array | None]:
        values, wanted = alike(logits(graph, state, t, settings), targets)
        error = jnp.abs(values - wanted).reshape(len(values), -1)
        right = None
        if "label" in batch:
            right = correct(graph, state, batch["label"], batch["mask"], settings, top)
        return jnp.sum(error**2, 1), jnp.max(error, 1), right

    found: tuple[Array, Array, Array | None]
    found = all_steps(graph, batch["image"], timesteps, observe, settings)[1]
    return found
