"""Functions as most users write theirs, among tests that forbid implicit promotion to everybody."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax


@contextlib.contextmanager
def promotion() -> Iterator[None]:
    """JAX as it is where nobody has set anything."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def implicit(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function, free to promote types and ranks: ``x @ w + bias``, ``x * (x.shape[0] > 2)``."""

    @functools.wraps(fn)
    def promoting(*args: Any) -> Any:
        with promotion():
            return fn(*args)

    return promoting
