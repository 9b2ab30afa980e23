"""Which constants of a jaxpr hold random numbers, and along which of their axes these differ.

Numbers drawn for each image may be equal by chance, so that their values do not tell.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.extend import core

# fmt: off
ELEMENTWISE = frozenset((
    "add", "add_any", "sub", "mul", "div", "max", "min", "neg", "abs", "sign", "floor", "ceil",
    "round", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "erf_inv", "integer_pow",
    "pow", "and", "or", "xor", "not", "lt", "le", "gt", "ge", "eq", "ne", "select_n", "clamp",
    "shift_left", "shift_right_logical", "convert_element_type", "reduce_precision", "copy",
    "stop_gradient",
))
# fmt: on


class Drawn:
    """Constants made of random numbers, each with the axes along which these differ."""

    def __init__(self) -> None:
        # With the constant itself, for as long as it lives no other gets its id.
        self._found: dict[int, tuple[Any, frozenset[int]]] = {}

    def axes(self, value: Any) -> frozenset[int]:
        return self._found.get(id(value), (None, frozenset()))[1]

    def __contains__(self, value: Any) -> bool:
        return id(value) in self._found

    def add(self, value: Any, axes: frozenset[int]) -> None:
        self._found[id(value)] = (value, axes)

    def follow(self, eqn: Any, values: Sequence[Any], made: Sequence[Any]) -> None:
        """Note what an equation makes of random numbers, or draws."""
        read = [v for v in values if v in self]
        if not read and not draws(eqn):
            return
        for value in made:
            shape = np.shape(value)
            every = frozenset(a for a, size in enumerate(shape) if size > 1)
            self.add(value, self._moved(eqn, values, shape) if read else every)

    def _moved(self, eqn: Any, values: Sequence[Any], shape: tuple[int, ...]) -> frozenset[int]:
        name = eqn.primitive.name
        if name == "broadcast_in_dim":
            to = eqn.params["broadcast_dimensions"]
            return frozenset(to[a] for a in self.axes(values[0]))
        if name == "transpose":
            return frozenset(
                a for a, b in enumerate(eqn.params["permutation"]) if b in self.axes(values[0])
            )
        if name in ELEMENTWISE:
            return frozenset().union(*(self.axes(v) for v in values))
        return frozenset(a for a, size in enumerate(shape) if size > 1)


def draws(eqn: Any) -> bool:
    """Whether an equation makes random numbers, itself or within."""
    if eqn.primitive.name.startswith(("random_", "threefry2x32", "rng_")):
        return True
    inner = (e for jaxpr in core.jaxprs_in_params(eqn.params) for e in jaxpr.eqns)
    return any(draws(e) for e in inner)
