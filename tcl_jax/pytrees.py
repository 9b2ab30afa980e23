"""Dataclasses as pytrees, each of a structure of its own."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import jax
from jax.tree_util import GetAttrKey

_T = TypeVar("_T", bound=type)


def pytree(*leaves: str) -> Callable[[_T], _T]:
    """Make a dataclass a pytree: the named fields are its children, all others its structure.

    Not by `jax.tree_util.register_dataclass`: structures that it makes are equal for different
    classes whose other fields are, and `jax.jit` then runs now and again what was compiled for one
    with the other, wherever their hashes come to lie side by side.

    >>> from dataclasses import dataclass
    >>> @pytree("x")
    ... @dataclass(frozen=True)
    ... class Metres:
    ...     x: float
    >>> @pytree("x")
    ... @dataclass(frozen=True)
    ... class Feet:
    ...     x: float
    >>> jax.tree.structure(Metres(1.0)) == jax.tree.structure(Feet(1.0))
    False
    >>> jax.tree.map(lambda x: 2 * x, Feet(1.0))
    Feet(x=2.0)
    """

    def register(cls: _T) -> _T:
        structure = [f.name for f in fields(cls) if f.name not in leaves]
        keys = [GetAttrKey(name) for name in leaves]

        def flat(tree: Any) -> tuple[list[Any], tuple[Any, ...]]:
            children = [getattr(tree, name) for name in leaves]
            return children, tuple([getattr(tree, name) for name in structure])

        def flat_with_keys(tree: Any) -> tuple[Any, tuple[Any, ...]]:
            children, told = flat(tree)
            return zip(keys, children, strict=True), told

        def made(told: tuple[Any, ...], children: Any) -> Any:
            names = (*structure, *leaves)
            return cls(**dict(zip(names, (*told, *children), strict=True)))

        jax.tree_util.register_pytree_with_keys(cls, flat_with_keys, made, flat)
        return cls

    return register
