"""Checks what annotations say of arrays, their types and axes, at every call that a test makes."""

import functools
import itertools
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype
from jax._src import source_info_util

_jaxtyped = jaxtyping.jaxtyped
source_info_util.register_exclusion(__file__)  # no line of a user's is here
ALWAYS, EVERY = 100, 10
"""Of the calls of one function in one process: how many are all checked, and which after those."""


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
        return sampled(what, _jaxtyped(what, typechecker=typechecker))

    return decorate


def sampled(plain: Callable[..., Any], checked: Callable[..., Any]) -> Callable[..., Any]:
    """The checked function at its first calls, and then now and then: a check takes about 1 ms."""
    calls = itertools.count()

    @functools.wraps(plain)
    def function(*arguments: Any, **named: Any) -> Any:
        number = next(calls)
        called = checked if number < ALWAYS or number % EVERY == 0 else plain
        return called(*arguments, **named)

    return function


def _of_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_of_array(part) for part in get_args(annotation))


jaxtyping.jaxtyped = _jaxtyped_if_of_arrays
