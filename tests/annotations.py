"""Checks what annotations say of arrays, their types and axes, at every call that a test makes."""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


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
        return _jaxtyped(what, typechecker=typechecker)

    return decorate


def _of_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_of_array(part) for part in get_args(annotation))


jaxtyping.jaxtyped = _jaxtyped_if_of_arrays
