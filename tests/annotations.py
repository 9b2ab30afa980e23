"""Checks what annotations say of arrays, their types and axes, at calls that tests make.

A check takes about 1 ms, more than most of what is called.  So each function is checked once for
every kind of arguments: types and shapes of arrays, and what else is small.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, get_args

import jax
import jaxtyping
import numpy as np
from beartype import beartype
from jax._src import source_info_util

_jaxtyped = jaxtyping.jaxtyped
source_info_util.register_exclusion(__file__)  # no line of a user's is here


def arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what its annotations say of arrays checked.

    Not the rest: mypy checks that, and tests hand over what it would not let pass.  Nor what
    pytrees are made of: JAX makes them of whatever stands for arrays, shapes, places or nothing.
    """
    fn.__annotations__ = {k: v for k, v in fn.__annotations__.items() if _of_array(v)}
    return beartype(fn)


def _jaxtyped_if_of_arrays(*, typechecker: Callable) -> Callable[[Any], Any]:
    """What jaxtyping's import hook decorates all functions and classes with; it costs each call."""

    def decorate(what: Any) -> Any:
        if isinstance(what, type) or not any(map(_of_array, what.__annotations__.values())):
            return what
        return once_a_kind(what, _jaxtyped(what, typechecker=typechecker))

    return decorate


def once_a_kind(plain: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The checked function for arguments of a kind that it has not taken yet, or else the plain."""
    taken: set[Hashable] = set()

    @functools.wraps(plain)
    def function(*arguments: Any, **named: Any) -> Any:
        kind = _kind((arguments, named))
        if kind in taken:
            return plain(*arguments, **named)
        result = checked(*arguments, **named)
        if not jaxtyping.config.jaxtyping_disable:
            taken.add(kind)
        return result

    return function


def _kind(value: Any) -> Hashable:
    if isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return type(value), value.shape, value.dtype
    if isinstance(value, list | tuple):
        return type(value), *map(_kind, value)
    if isinstance(value, Mapping):
        return type(value), *((key, _kind(part)) for key, part in value.items())
    return (type(value), value) if isinstance(value, str | int | None) else type(value)


def _of_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_of_array(part) for part in get_args(annotation))


jaxtyping.jaxtyped = _jaxtyped_if_of_arrays
