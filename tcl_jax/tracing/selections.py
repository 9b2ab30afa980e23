"""Primitives that pick values out of what they are given: each says itself what it picks.

A primitive of that kind does not look at the numbers that it moves.  Carried out on numbers that
say where they stand, it tells of every number of its result where it comes from.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from tcl_jax import graph as g
from tcl_jax.tracing.tracer import Refused, Signal, Tracer

VALUES = {
    "gather": (0,),
    "dynamic_update_slice": (0, 1),
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub"), (0, 2)),
}
"""Which arguments hold values, where others hold places."""
MIXED = "what is picked for an image is of another one, or of some images only"


def selection(t: Tracer, eqn: Any, *values: Any) -> Any:
    """The result of a primitive of which every number is one that it is given, or constant."""
    moved = VALUES.get(eqn.primitive.name, range(len(values)))
    if any(isinstance(v, Signal) for which, v in enumerate(values) if which not in moved):
        return t.refuse(eqn, "the places that are picked depend on the input")
    total: Any = None
    for which, x in enumerate(values):
        if not isinstance(x, Signal):
            continue
        part = picked(t, eqn, x, which, _sources(eqn, values, which))
        if isinstance(part, Refused):
            return part
        if part is not None:
            total = part if total is None else t.rules["add"](t, eqn, total, part)
    return with_constant(t, eqn, total, values)


def carried_out(eqn: Any, given: Any, **params: Any) -> np.ndarray:
    """What an equation makes of arrays, with other parameters where these are given."""
    bound = eqn.primitive.get_bind_params(eqn.params | params)
    with jax.ensure_compile_time_eval():  # under an outer jit too
        return np.asarray(eqn.primitive.bind(*given, **bound))


def with_constant(t: Tracer, eqn: Any, total: Any, values: Any) -> Any:
    """A sum of signals and what the equation makes of its constants; that alone if none is left."""
    given = [np.zeros(v.aval.shape, v.aval.dtype) if isinstance(x, Signal) else x
             for v, x in zip(eqn.invars, values, strict=True)]  # fmt: skip
    constant = carried_out(eqn, given)
    if "fill_value" in eqn.params and np.isnan(constant).any():
        return t.refuse(
            eqn,
            "a place that is picked lies outside of the signal, where JAX finds NaN",
            "pick places that are there",
        )
    if total is None or isinstance(total, Refused):
        return constant if total is None else total
    return t.rules["add"](t, eqn, total, constant) if constant.any() else total


def _sources(eqn: Any, values: Any, which: int) -> np.ndarray:
    """Of every number of the result, the place in one of the arguments that it is of, or -1."""
    moved = VALUES.get(eqn.primitive.name, range(len(values)))
    shape = eqn.invars[which].aval.shape
    numbers = np.arange(1, 1 + math.prod(shape), dtype=np.int32).reshape(shape)
    given = [
        numbers if k == which else np.zeros(v.aval.shape, np.int32) if k in moved else x
        for k, (v, x) in enumerate(zip(eqn.invars, values, strict=True))
    ]
    # Outside of it there is nothing, whatever stands there.
    fill: Any = {"fill_value": 0} if "fill_value" in eqn.params else {}
    return carried_out(eqn, given, **fill) - 1


def picked(t: Tracer, eqn: Any, x: Signal, which: int, sources: np.ndarray) -> Any:
    """The signal of what is picked from another; None where nothing is."""
    there = sources >= 0
    if not there.any():
        return None
    shape = eqn.invars[which].aval.shape
    found = of_one_image(sources, shape, [x.batch], range(sources.ndim))
    if found is None:
        return t.refuse(eqn, MIXED)
    _, batch, at, there = found
    before = [size for axis, size in enumerate(shape) if axis != x.batch]
    apart = _apart(at, there)
    if apart is None:
        return _anywhere(t, eqn, x, before, at, there, batch)
    return _along_axes(t, eqn, x, before, apart, there.shape, batch)


class Within(NamedTuple):
    """Where within their image numbers come from, alike for all images.

    Attributes:
        axis: of images, of what they come from.
        batch: their own axis of images.
        at: by each other axis of what they come from, their places along it.
        there: whether they come from anywhere.
    """

    axis: int
    batch: int
    at: list[np.ndarray]
    there: np.ndarray


def of_one_image(
    sources: np.ndarray, shape: tuple[int, ...], axes: Iterable[int], batches: Iterable[int]
) -> Within | None:
    """What numbers come from, if each image's are of that image, and alike.

    Args:
        sources: of each, its place in what they come from, or -1.
        shape: of that.
        axes: of it, one of which is that of images.
        batches: likewise, of the numbers' own.
    """
    for axis, batch in itertools.product(axes, batches):
        count, apart = shape[axis], math.prod(shape[axis + 1 :])
        if sources.shape[batch] != count:
            continue
        each = np.moveaxis(sources, batch, 0)
        there = each[0] >= 0
        steps = apart * np.arange(count, dtype=sources.dtype).reshape(-1, *(1,) * there.ndim)
        at = list(np.unravel_index(np.maximum(each[0], 0), shape))
        image = at.pop(axis)
        if not image[there].any() and (each == np.where(there, each[0] + steps, -1)).all():
            return Within(axis, batch, at, there)
    return None


def in_a_row(at: list[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Places by their numbers, where those of all axes are in one row."""
    return np.ravel_multi_index(at, shape) if shape else np.zeros((), int)


class _Apart(NamedTuple):
    """What is picked, an axis at a time.

    Attributes:
        read: for each axis of what is picked from, the result's axis along which its places are
            read, or None where it is one place; and these places, or -1.
        new: likewise for those of the result that are along no axis of it: 0, or -1.
    """

    read: list[tuple[int | None, np.ndarray]]
    new: dict[int, np.ndarray]


def _apart(at: list[np.ndarray], there: np.ndarray) -> _Apart | None:
    """Places as a choice along each axis, if they are one."""
    rank = there.ndim
    across = [tuple(a for a in range(rank) if a != axis) for axis in range(rank)]
    present = [there.any(others) for others in across]
    block = np.ix_(*present)
    if there[block].size != there.sum():
        return None
    read: list[tuple[int | None, np.ndarray]] = []
    for places in (a[block] for a in at):
        varies = [axis for axis in range(rank) if (places != places.take([0], axis)).any()]
        if len(varies) > 1:
            return None
        if not varies:
            read.append((None, places.reshape(-1)[:1]))
            continue
        (axis,) = varies
        index = np.full(there.shape[axis], -1)
        index[present[axis]] = np.moveaxis(places, axis, 0).reshape(present[axis].sum(), -1)[:, 0]
        read.append((axis, index))
    axes = [axis for axis, _ in read if axis is not None]
    if len(axes) > len(set(axes)):
        return None
    new = {a: np.where(present[a], 0, -1) for a in range(rank) if a not in axes}
    return _Apart(read, new)


def _along_axes(
    t: Tracer,
    eqn: Any,
    x: Signal,
    before: list[int],
    apart: _Apart,
    after: tuple[int, ...],
    batch: int,
) -> Signal:
    others = [axis for axis in range(len(x.axes)) if axis != x.batch]
    node = x.node
    for own, size, (_, index) in zip(others, before, apart.read, strict=True):
        node = taken(t, eqn, node, x.axes[own] - 1, size, index)
    # Axes that are left lie as they did, and new ones stand before them.
    lie = sorted(range(len(others)), key=lambda k: x.axes[others[k]])
    kept = [axis for k in lie if (axis := apart.read[k][0]) is not None]
    order = [*apart.new, *kept]
    if apart.new or len(kept) < len(others):
        shape = (*(1 for _ in apart.new), *(after[axis] for axis in kept))
        node = t.in_shape(eqn, node, shape)
    for k, index in enumerate(apart.new.values()):
        node = taken(t, eqn, node, k, 1, index)
    return signal(node, order, batch)


def taken(t: Tracer, eqn: Any, node: int, axis: int, size: int, index: np.ndarray) -> int:
    """The node of the places along a node's axis, of some size, that are picked; -1 for zeros."""
    if np.array_equal(index, np.arange(size)):
        return node
    return t.add(eqn, "take", g.Take(axis, tuple(index.tolist())), (node,), ()).node


def _anywhere(
    t: Tracer,
    eqn: Any,
    x: Signal,
    before: list[int],
    at: list[np.ndarray],
    there: np.ndarray,
    batch: int,
) -> Signal:
    """Whatever is picked from all that an image has, in the order in which the function has it."""
    flat = flattened(t, eqn, x, before)
    index = np.where(there, in_a_row(at, before), -1).ravel()
    node = taken(t, eqn, flat, 0, math.prod(before), index)
    node = t.in_shape(eqn, node, there.shape)
    return signal(node, range(there.ndim), batch)


def flattened(t: Tracer, eqn: Any, x: Signal, shape: Any) -> int:
    """The node of all numbers of an image in one row, as the function has them in order."""
    others = [axis for axis in range(len(x.axes)) if axis != x.batch]
    x = t.arranged(x, tuple(int(i) for i in np.argsort((x.batch, *others))))
    return t.in_shape(eqn, x.node, (math.prod(shape),))


def signal(node: int, order: Any, batch: int) -> Signal:
    """A signal of which the node has the result's axes, without the batch, in an order."""
    axes = [1 + list(order).index(axis) for axis in range(len(order))]
    return Signal(node, (*axes[:batch], 0, *axes[batch:]))
