"""Ranks and types made equal in so many words: users may forbid JAX to promote them implicitly."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


@contextlib.contextmanager
def implicit() -> Iterator[None]:
    """JAX as it is where nobody has set anything: around what promotes, and as its decorator.

    For libraries that we call, as Flax's pooling and optax's schedules.
    """
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def against(value: Array, like: Array) -> Array:
    """A value with axes of length 1 in front, so that it has as many as what it is to meet.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.promotion import against
    >>> against(jnp.ones(3), jnp.ones((5, 2, 3))).shape
    (1, 1, 3)
    """
    return value.reshape((1,) * (like.ndim - value.ndim) + value.shape)


def alike(*arrays: Array) -> list[Array]:
    """Arrays in the one type that holds the values of all of them.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.promotion import alike
    >>> [str(a.dtype) for a in alike(jnp.ones(3, jnp.int8), jnp.ones(3, jnp.int32))]
    ['int32', 'int32']
    """
    with implicit():
        dtype = jnp.result_type(*arrays)
    return [a.astype(dtype) for a in arrays]


def wider(a: Any, b: Any) -> Any:
    """The type that holds the values of both.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.promotion import wider
    >>> str(wider(jnp.bfloat16, jnp.float32))
    'float32'
    """
    with implicit():
        return jnp.promote_types(a, b)
