"""Proof, on data, that every stage of a conversion computes what the function does."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core
from jaxtyping import Array, Bool, Float, Real

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import PRECISION


class Stages(NamedTuple):
    """One network at every stage of its conversion; each computes what the function does.

    Attributes:
        traced: as the function was read.
        folded: with batch norm in weights, and norm-factors as thresholds.
        normalised: with thresholds of 1.
    """

    traced: g.Graph
    folded: g.Graph
    normalised: g.Graph


@dataclass(frozen=True)
class Proof:
    """What was compared, and found to be the same.

    Attributes:
        images: how many.
        same_class: how many have the same largest logit after folding as before.
        largest: the function's largest logit, its absolute value.
        folded: the largest difference of a logit after folding, from the function's.
        normalised: likewise after normalisation, from those before.
    """

    images: int
    same_class: int
    largest: float
    folded: float
    normalised: float


def prove(
    function: Callable[[Array], Array],
    epsilon: float,
    stages: Stages,
    batches: Iterable[tuple[Real[Array, "_ ..."], Bool[np.ndarray, " _"]]],
) -> Proof:
    r"""Compare the function's logits with every stage's, and refuse what does not compute the same.

    A stage may differ by :math:`\sqrt{\epsilon}` of the largest logit, half the digits of the
    narrowest type that the function computes in: rounding stays far below that, and an error of the
    conversion is of the order of the logits.  Before and after normalisation the networks that
    spike rates tend to (`tcl_jax.graph.limit`) are compared, too.

    Args:
        function: what was traced, `compiled`.
        epsilon: ε, as `traced` tells it.
        stages: what became of the function.
        batches: of images, of one size, with a mask that is false where there is none.

    Raises:
        InputError: a stage differs, or the logits are not finite.
    """
    largest = folded = normalised = 0.0
    images = same_class = 0
    tolerance = math.sqrt(epsilon)
    readings = [(stages.folded, stages.normalised)]
    if any(not np.array_equal(n.op.clip, n.op.threshold) for n in stages.folded.neurons):
        readings.append((g.limit(stages.folded), g.limit(stages.normalised)))
    for x, mask in batches:
        logits = np.asarray(function(x), np.float64)[mask]
        of_readings = [[_logits(graph, x)[mask] for graph in pair] for pair in readings]
        as_folded = of_readings[0][0]
        if not np.isfinite(logits).all():
            raise InputError(
                "the function's logits are not finite on the images that are to prove its "
                "conversion, though its weights are: the images are not, or values overflow"
            )
        largest = max(largest, _largest(logits))
        folded = max(folded, _largest(as_folded - logits))
        images += len(logits)
        same_class += int(np.sum(as_folded.argmax(-1) == logits.argmax(-1)))
        if not folded <= tolerance * largest:
            as_traced = _largest(_logits(stages.traced, x)[mask] - logits)
            if as_traced > folded / 2:
                raise _refusal("as it was traced", folded, largest, "")
            place = _place(stages.traced, stages.folded, x, tolerance)
            raise _refusal("with batch norm folded", folded, largest, place)
        for pair, (before, after) in zip(readings, of_readings, strict=True):
            normalised = max(normalised, _largest(after - before))
            if not normalised <= tolerance * largest:
                place = _place(*pair, x, tolerance)
                raise _refusal("normalised", normalised, largest, place)
    return Proof(images, same_class, largest, folded, normalised)


def compiled(fn: Callable[[Array], Array], x: Any) -> Callable[[Array], Array]:
    """A function compiled with its weights as arguments: XLA would fold constants, slowly.

    Args:
        fn: of a batch.
        x: a batch, or anything with its shape and dtype.
    """
    with jax.default_matmul_precision(PRECISION):
        closed = jax.make_jaxpr(fn)(x)
    jaxpr: Any = closed.jaxpr

    @jax.jit
    def call(consts: Any, x: Array) -> Array:
        logits: Array
        (logits,) = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(x)
        return logits

    return lambda x: call(closed.consts, x)


def _refusal(what: str, error: float, largest: float, place: str) -> InputError:
    return InputError(
        f"the network {what} gives logits that differ by {error:.3g} from the function's, of which "
        f"the largest is {largest:.3g}{place}: the conversion is not exact, so it is refused; is "
        "the function the same at every call, and finite?"
    )


def _logits(graph: g.Graph, x: Array) -> Float[np.ndarray, "b ..."]:
    return np.asarray(g.evaluate(graph, x), np.float64)


def _largest(values: Float[np.ndarray, "..."]) -> float:
    return float(np.max(np.abs(values), initial=0.0))


def _place(before: g.Graph, after: g.Graph, x: Array, tolerance: float) -> str:
    """The first neurons at which two stages part."""
    activations: list[dict[str, np.ndarray]] = []
    for graph in (before, after):
        seen: dict[str, Any] = {}
        g.evaluate(graph, x, seen.__setitem__)
        units = {n.name: np.asarray(n.op.unit) for n in graph.neurons}
        activations.append({name: np.asarray(seen[name]) * unit for name, unit in units.items()})
    for name, values in activations[0].items():
        if not _largest(values - activations[1][name]) <= tolerance * _largest(values):
            return f" (they part at {name!r})"
    return ""
