"""What linear primitives do to a signal: sums of it, weighted or not."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tcl_jax import graph as g
from tcl_jax.tracing import layout, selections
from tcl_jax.tracing.tracer import FEWEST_BITS, Refused, Signal, Tracer


def _note_precision(t: Tracer, eqn: Any) -> None:
    """Note where a function asks for less than it is traced with: bfloat16, on some backend."""
    if eqn.params["precision"] != (lax.Precision.HIGHEST, lax.Precision.HIGHEST):
        t.bits = min(t.bits, FEWEST_BITS)


def conv(t: Tracer, eqn: Any, x: Any, kernel: Any) -> Any:
    p, spec = eqn.params, eqn.params["dimension_numbers"]
    if not isinstance(x, Signal) or isinstance(kernel, Signal):
        return t.refuse(eqn, "the kernel of a convolution depends on the input")
    if spec.lhs_spec[0] != x.batch:
        return t.refuse(eqn, "the batch of a convolution is not that of the images")
    if p["batch_group_count"] != 1:
        return t.refuse(eqn, "a convolution that takes the batch in groups mixes images")
    _note_precision(t, eqn)
    x = t.arranged(x, _channels_last(spec.lhs_spec))
    x = _dilated(t, eqn, x, (*p["lhs_dilation"], 1))  # a transposed convolution
    hwio = (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
    array = jnp.transpose(t.array(kernel), hwio)
    return t.add(
        eqn,
        "conv",
        g.Conv(
            array,
            None,
            tuple(p["window_strides"]),
            tuple((int(low), int(high)) for low, high in p["padding"]),
            tuple(p["rhs_dilation"]),
            p["feature_group_count"],
        ),
        (x.node,),
        _channels_last(spec.out_spec),
    )


def _dilated(t: Tracer, eqn: Any, x: Signal, dilation: tuple[int, ...]) -> Signal:
    """A signal with zeros between its values, which are so far apart along the node's axes."""
    if all(d == 1 for d in dilation):
        return x
    padding = tuple((0, 0, int(d) - 1) for d in dilation)
    return t.add(eqn, "pad", g.Pad(padding), (x.node,), x.axes)


def _channels_last(spec: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a signal whose batch, features and space lie as in a convolution's specification."""
    return tuple(int(i) for i in np.argsort((spec[0], *spec[2:], spec[1])))


def dot(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Signal) and isinstance(b, Signal):
        return t.refuse(eqn, "the product of two signals is not affine (attention?)")
    (contract_a, contract_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    signal_first = isinstance(a, Signal)
    x, contract, weight, with_ = (
        (a, contract_a, b, contract_b) if signal_first else (b, contract_b, a, contract_a)
    )
    if x.batch in contract:
        return t.refuse(eqn, "a sum over the batch mixes images")
    weight = np.asarray(weight, t.dtype)
    places, theirs = (batch_a, batch_b) if signal_first else (batch_b, batch_a)
    if x.batch in places:
        of_images = theirs[places.index(x.batch)]
        of_first = weight.take([0], of_images)
        if not np.array_equal(weight, np.broadcast_to(of_first, weight.shape), equal_nan=True):
            return t.refuse(eqn, "every image meets weights of its own")
        weight = of_first
    _note_precision(t, eqn)
    # From [batch, free axes, places of weights of their own, contracted axes] to those of the
    # weight in place of the last.
    shape, batch = eqn.invars[not signal_first].aval.shape, x.batch
    apart = [i for i in places if i != batch]
    free = [i for i in range(len(shape)) if i not in (*contract, *places)]
    inner = [*(i for i in free if i != batch), *apart]
    x = t.arranged(x, tuple(int(i) for i in np.argsort((batch, *inner, *contract))))
    kept = [shape[i] for i in inner]
    rest = [i for i in range(weight.ndim) if i not in (*with_, *theirs)]
    outer = tuple(weight.shape[i] for i in rest)
    size = math.prod(weight.shape[i] for i in with_)
    weight = weight.transpose([*theirs, *with_, *rest])
    weight = weight.reshape(*(shape[i] for i in apart), size, -1)
    before = x.node if len(contract) == 1 else t.in_shape(eqn, x.node, (*kept, size))
    x = t.add(eqn, "dense", _weighing(t, weight), (before,), ())
    node = x.node if len(outer) == 1 else t.in_shape(eqn, x.node, (*kept, *outer))
    lies = {batch: 0} | {i: 1 + k for k, i in enumerate(inner)}
    own = [lies[i] for i in free]
    others = [1 + len(inner) + k for k in range(len(outer))]
    first = [lies[i] for i in places]
    return Signal(node, (*first, *(own + others if signal_first else others + own)))


def _weighing(t: Tracer, weight: np.ndarray) -> g.Op:
    """The linear map of the last axis by one matrix, or by one at each place."""
    if weight.ndim > 2:
        return g.Linear(t.array(weight), None)
    # Of interpolation most weights are none.
    kind = g.Sparse if 2 * np.count_nonzero(weight) <= weight.size else g.Dense
    return kind(t.array(weight), None)


def pool(t: Tracer, eqn: Any, x: Signal) -> Any:
    p = eqn.params
    if p["window_dimensions"][x.batch] != 1:
        return t.refuse(eqn, "pooling over the batch mixes images")
    x = _dilated(t, eqn, x, layout.inner(x, p["base_dilation"]))
    window, strides = (layout.inner(x, p[k]) for k in ("window_dimensions", "window_strides"))
    padding = tuple((int(low), int(high)) for low, high in layout.inner(x, p["padding"]))
    apart = layout.inner(x, p["window_dilation"])
    if all(d == 1 for d in apart):
        pool = g.Pool(t.array(1.0), window, strides, padding)
        return t.add(eqn, "pool", pool, (x.node,), x.axes)
    # With gaps in its window it is a convolution of the image as a whole, of one channel.
    shape, after = (layout.inner(x, var.aval.shape) for var in (eqn.invars[0], eqn.outvars[0]))
    single = t.in_shape(eqn, x.node, (*shape, 1))
    kernel = t.array(np.ones((*window, 1, 1)))
    summed = g.Conv(kernel, None, strides, padding, apart, 1)
    x = t.add(eqn, "conv", summed, (single,), x.axes)
    return Signal(t.in_shape(eqn, x.node, after), x.axes)


def sum_(t: Tracer, eqn: Any, x: Signal) -> Any:
    summed = [int(a) for a in eqn.params["axes"]]
    if x.batch in summed:
        return t.refuse(eqn, "a sum over the batch mixes images", "batch norm? use inference mode")
    axes = tuple(sorted(x.axes[a] - 1 for a in summed))
    left = [axis for a, axis in enumerate(x.axes) if a not in summed]
    ranks = tuple(sorted(left).index(axis) for axis in left)
    return t.add(eqn, "sum", g.Sum(t.array(1.0), axes), (x.node,), ranks)


def cumsum(t: Tracer, eqn: Any, x: Signal) -> Any:
    axis, size = eqn.params["axis"], eqn.invars[0].aval.shape[eqn.params["axis"]]
    if axis == x.batch:
        return t.refuse(eqn, "a running sum over the batch mixes images")
    ones = np.ones((size, size))
    matrix = t.array(np.tril(ones) if eqn.params["reverse"] else np.triu(ones))
    inner = [i for i in range(len(x.axes)) if i not in (axis, x.batch)]
    x = t.arranged(x, tuple(int(i) for i in np.argsort((x.batch, *inner, axis))))
    return t.add(eqn, "dense", g.Sparse(matrix, None), (x.node,), x.axes)


def scatter_add(t: Tracer, eqn: Any, onto: Any, places: Any, added: Any) -> Any:
    values = onto, places, added
    total: Any = onto if isinstance(onto, Signal) else None
    if isinstance(added, Signal):
        part = _added(t, eqn, places, added)
        if isinstance(part, Refused):
            return part
        if eqn.primitive.name == "scatter-sub":
            part = t.rules["neg"](t, eqn, part)
        total = part if total is None else t.rules["add"](t, eqn, total, part)
    return selections.with_constant(t, eqn, total, values)


def _added(t: Tracer, eqn: Any, places: Any, x: Signal) -> Any:
    """What is added everywhere: at each place the sum of all that is put there."""
    shape, after = eqn.invars[2].aval.shape, eqn.outvars[0].aval.shape
    if math.prod(after) >= 2**24:  # of which float32 has no number for each
        return t.refuse(eqn, "a signal of 2^24 numbers or more is added to", "add to a part of it")

    where = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")

    def written(values: Any) -> Any:
        how = {name: eqn.params[name] for name in where}
        return lax.scatter_add(jnp.zeros(after, jnp.float32), places, values, **how)

    # Numbers that say where they stand come back from there to what was put there.
    numbers = jnp.arange(1, 1 + math.prod(after), dtype=jnp.float32).reshape(after)
    (back,) = jax.vjp(written, jnp.zeros(shape, jnp.float32))[1](numbers)
    target = np.asarray(back).astype(np.int64) - 1
    found = selections.of_one_image(target, after, range(len(after)), [x.batch])
    if found is None:
        return t.refuse(eqn, selections.MIXED)
    batch, _, at, there = found
    sizes = tuple(n for axis, n in enumerate(after) if axis != batch)
    index = _by_place(selections.in_a_row(at, sizes)[there], math.prod(sizes), there.ravel())
    flat = selections.flattened(t, eqn, x, there.shape)
    node = selections.taken(t, eqn, flat, 0, there.size, index.ravel())
    if index.shape[1] > 1:
        node = t.in_shape(eqn, node, index.shape)
        node = t.add(eqn, "sum", g.Sum(t.array(1.0), (1,)), (node,), ()).node
    node = t.in_shape(eqn, node, sizes)
    return selections.signal(node, range(len(sizes)), batch)


def _by_place(targets: np.ndarray, count: int, there: np.ndarray) -> np.ndarray:
    """For each of the places, in a row, the numbers of what is put there; -1 for no more."""
    order = np.argsort(targets, kind="stable")
    numbers = np.bincount(targets, minlength=count)
    rank = np.arange(len(order)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    index = np.full((count, max(numbers.max(), 1)), -1)
    index[targets[order], rank] = np.flatnonzero(there)[order]
    return index
