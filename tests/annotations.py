"""Checks what annotations say of arrays, their types and axes, at every call that a test makes."""

from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import beartype


def arrays(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with what its annotations say of arrays checked.

    Not the rest: mypy checks that, and tests hand over what it would not let pass.  Nor what
    pytrees are made of: JAX makes them of whatever stands for arrays, shapes, places or nothing.
    """
    if fn.__name__ == "__init__":
        return fn
    fn.__annotations__ = {k: v for k, v in fn.__annotations__.items() if _of_array(v)}
    return beartype(fn)


def _of_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    return any(_of_array(part) for part in get_args(annotation))
