"""Compilation of functions that are new at each call, but often the same program."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import jax
from jax.extend import core

T = TypeVar("T")


def compiled_once(fn: Callable[..., T], *args: Any) -> T:
    """`fn` of these arguments, as one compiled program; compiled where there was none like it.

    `jax.jit` tells functions apart by what they are, not by what they do: it compiles the same one
    anew where it was made anew, and takes an old one for the same although what it reads beside
    its arguments has changed.  Here a function is traced at each call, which is quick beside
    compilation, and what it comes to is compared.  One that calls back into Python is compiled
    each time, since a program does not show what it calls.

    Args:
        fn: from pytrees of arrays to such; it may read other arrays.
        args: where one is traced, `fn` is a part of the caller's program.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.simulation.compiled import compiled_once
    >>> [compiled_once(lambda x: x + y, jnp.arange(2)).tolist() for y in (1, 1, 5)]
    [[1, 2], [1, 2], [5, 6]]
    """
    flat = jax.tree.leaves(args)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in flat):
        return fn(*args)
    closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    program = _of(closed.jaxpr)
    if not _calls_back(closed.jaxpr):
        text = program.lower(closed.consts, *flat).as_text()
        program = _first_like(_Program(text, program))
    found: T = jax.tree.unflatten(jax.tree.structure(shapes), program(closed.consts, *flat))
    return found


@dataclass(frozen=True)
class _Program:
    """Equal where the text is: it shows all that a program is; functions only equal themselves."""

    text: str
    jitted: Any = field(compare=False)


@lru_cache(maxsize=32)
def _first_like(program: _Program) -> Any:
    return program.jitted


def _of(jaxpr: Any) -> Any:
    return jax.jit(lambda consts, *x: core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, consts))(*x))


def _calls_back(jaxpr: Any) -> bool:
    return bool(jaxpr.effects) or any(
        "callback" in eqn.primitive.name or any(map(_calls_back, core.jaxprs_in_params(eqn.params)))
        for eqn in jaxpr.eqns
    )
