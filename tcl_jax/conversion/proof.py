"""Proof, on data, that every stage of a conversion computes what the function does."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tcl_jax.conversion import graph as g
from tcl_jax.errors import InputError


class Stages(NamedTuple):
    """One network at every stage of its conversion.

    Attributes:
        traced: as the function was read; computes what it does.
        folded: likewise.
        clipped: with norm-factors as clips, which with ``tcl`` are the function's own.
        normalised: computes what `clipped` does.
    """

    traced: g.SpikingGraph
    folded: g.SpikingGraph
    clipped: g.SpikingGraph
    normalised: g.SpikingGraph


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        images: how many.
        same_class: how many have the same largest logit after folding as before.
        largest: the function's largest logit, its absolute value.
        errors: the largest difference of a logit, by stage: ``traced`` and ``folded`` from the
            function, ``normalised`` from the network with the same clips.
    """

    images: int
    same_class: int
    largest: float
    errors: dict[str, float]


def compare(
    fn: Callable[[Array], Array],
    stages: Stages,
    batches: Iterable[tuple[Float[Array, "b ..."], Bool[Array, " b"]]],
) -> Compared:
    """Logits of the function and of every stage, side by side.

    Args:
        fn: the function that was traced.
        stages: what became of it.
        batches: of images, with a mask that is false where there is none.
    """

    @jax.jit
    def of_batch(stages: Stages, x: Array, mask: Array) -> dict[str, Array]:
        def largest(difference: Array) -> Array:
            masked = jnp.where(mask.reshape(-1, *(1,) * (difference.ndim - 1)), difference, 0)
            return jnp.max(jnp.abs(masked))

        # Else a TPU rounds what it multiplies to 8 bits.
        with jax.default_matmul_precision("highest"):
            logits = fn(x)
            traced, folded, clipped, normalised = (g.evaluate(graph, x) for graph in stages)
        logits = logits.astype(traced.dtype)
        same = folded.argmax(-1) == logits.argmax(-1)
        return {
            "traced": largest(traced - logits),
            "folded": largest(folded - logits),
            "normalised": largest(normalised - clipped),
            "largest": largest(logits),
            "same_class": jnp.sum(same & mask.reshape(-1, *(1,) * (same.ndim - 1))),
            "images": jnp.sum(mask),
        }

    found = [jax.device_get(of_batch(stages, x, mask)) for x, mask in batches]
    most = {name: float(np.max([f[name] for f in found])) for name in ("largest", *_ERRORS)}
    total = {name: int(sum(f[name] for f in found)) for name in ("same_class", "images")}
    return Compared(largest=most["largest"], errors={n: most[n] for n in _ERRORS}, **total)


_ERRORS = {
    "traced": "as it was traced",
    "folded": "with batch norm folded",
    "normalised": "normalised",
}


def prove(found: Compared, precision: float, stages: Stages, x: Float[Array, "b ..."]) -> None:
    r"""Refuse what does not compute the same.

    A stage may differ by :math:`\sqrt{\epsilon}` of the largest logit, half the digits of the
    narrowest type that the function computes in: rounding stays far below that, and an error of the
    conversion is of the order of the logits.

    Args:
        found: the comparison.
        precision: ε, as `traced` tells it.
        stages: for the place of the difference.
        x: some of the images that were compared, likewise.

    Raises:
        InputError: a stage differs, or the logits are not finite.
    """
    if not math.isfinite(found.largest):
        raise InputError(
            "the function's logits are not finite on the images that conversion was to be proved "
            "on: training diverged, or the images are not finite"
        )
    for stage, what in _ERRORS.items():
        error = found.errors[stage]
        if not error <= math.sqrt(precision) * found.largest:
            place = _place(stages, x, math.sqrt(precision)) if stage == "normalised" else ""
            raise InputError(
                f"the network {what} gives logits that differ by {error:.3g} from the function's, "
                f"of which the largest is {found.largest:.3g}{place}: the conversion is not exact, "
                "so it is refused; is the function the same at every call, and finite?"
            )


def _place(stages: Stages, x: Array, tolerance: float) -> str:
    """The first neurons at which normalised and clipped network part."""
    rates: list[dict[str, Any]] = []
    for graph in (stages.clipped, stages.normalised):
        thresholds = {n.name: n.threshold for n in graph.neurons}
        seen: dict[str, Any] = {}
        g.evaluate(graph, x, seen.__setitem__)
        rates.append({n: np.asarray(seen[n] / thresholds[n]) for n in thresholds})
    for name, rate in rates[0].items():
        if not np.abs(rate - rates[1][name]).max() <= tolerance:
            return f" (they part at {name!r})"
    return ""
