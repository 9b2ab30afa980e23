"""What primitives that move a signal's values about do to it: the node that each becomes."""

import itertools
import math
from typing import Any

import numpy as np

from tcl_jax import graph as g
from tcl_jax.tracing import selections
from tcl_jax.tracing.tracer import Signal, Tracer


def inner(x: Signal, by_axis: Any) -> tuple[Any, ...]:
    """What is given for every traced axis, for the node's axes without the batch."""
    return tuple(by_axis[x.axes.index(i)] for i in range(1, len(x.axes)))


def reshape(t: Tracer, eqn: Any, x: Signal, *_: Any) -> Any:
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if before == after:
        return x
    # The batch keeps its place in memory: as much before it as before.
    start = math.prod(before[: x.batch])
    batch = next(
        (
            i
            for i, size in enumerate(after)
            if size == before[x.batch] and math.prod(after[:i]) == start
        ),
        None,
    )
    if batch is None:
        return t.refuse(
            eqn, "the batch axis is merged with another", "reshape with x.shape[0] in front"
        )
    t.shapes[x.node] = inner(x, before)
    rest = [i for i in range(len(after)) if i != batch]
    long_before = [i for i, size in enumerate(before) if size > 1 and i != x.batch]
    long_after = [i for i in rest if after[i] > 1]
    if [before[i] for i in long_before] == [after[i] for i in long_after]:
        # Axes of length one come and go: the others stay as they lie in the node.
        pairs = sorted(zip((x.axes[i] for i in long_before), long_after, strict=True))
        rest = [i for i in rest if after[i] == 1] + [i for _, i in pairs]
    else:
        others = [i for i in range(len(before)) if i != x.batch]
        x = t.arranged(x, tuple(int(i) for i in np.argsort((x.batch, *others))))
    node = t.in_shape(eqn, x.node, tuple(after[i] for i in rest))
    return Signal(node, tuple(int(i) for i in np.argsort((batch, *rest))))


def broadcast(t: Tracer, eqn: Any, x: Signal, *_: Any) -> Any:
    # Where signals only gain axes of length one, the order of the others is that of a reshape.
    repeats = math.prod(eqn.invars[0].aval.shape) != math.prod(eqn.outvars[0].aval.shape)
    return selections.selection(t, eqn, x) if repeats else reshape(t, eqn, x)


def transpose(t: Tracer, eqn: Any, x: Signal) -> Any:
    return Signal(x.node, tuple(x.axes[i] for i in eqn.params["permutation"]))


def concatenate(t: Tracer, eqn: Any, *parts: Any) -> Any:
    axis = eqn.params["dimension"]
    if len(own := [p for p in parts if isinstance(p, Signal) or np.size(p)]) == 1:
        return own[0]  # beside margins of no width
    first = next(p for p in parts if isinstance(p, Signal))
    if not all(isinstance(p, Signal) for p in parts):
        return selections.selection(t, eqn, *parts)
    if any(p.batch != first.batch for p in parts) or axis == first.batch:
        return t.refuse(eqn, "a concatenation over the batch mixes images")
    read = tuple(t.arranged(p, first.axes).node for p in parts)
    return t.add(eqn, "concat", g.Concat(first.axes[axis] - 1), read, first.axes)


def stack(t: Tracer, eqn: Any, *parts: Any) -> Any:
    first = next(p for p in parts if isinstance(p, Signal))
    if not all(isinstance(p, Signal) for p in parts):
        return selections.selection(t, eqn, *parts)
    if any(p.batch != first.batch for p in parts):
        return t.refuse(eqn, "signals are stacked whose images lie along different axes")
    inner_shape = inner(first, eqn.invars[0].aval.shape)
    read = (t.arranged(p, first.axes).node for p in parts)
    rows = tuple(t.in_shape(eqn, node, (1, *inner_shape)) for node in read)
    axes = [a + (a > 0) for a in first.axes]
    axes.insert(eqn.params["axis"], 1)
    return t.add(eqn, "concat", g.Concat(0), rows, tuple(axes))


def pad(t: Tracer, eqn: Any, x: Any, value: Any) -> Any:
    if not isinstance(x, Signal) or isinstance(value, Signal) or np.any(np.asarray(value) != 0):
        return selections.selection(t, eqn, x, value)
    config = eqn.params["padding_config"]
    if any(config[x.batch]):
        return t.refuse(eqn, "the batch is padded")
    padding = tuple((int(a), int(b), int(c)) for a, b, c in inner(x, config))
    return t.add(eqn, "pad", g.Pad(padding), (x.node,), x.axes)


def cut(t: Tracer, eqn: Any, x: Signal, start: Any, stop: Any, strides: Any) -> Any:
    """The part of a signal within bounds given for every traced axis."""
    size = eqn.invars[0].aval.shape[x.batch]
    if (start[x.batch], stop[x.batch], strides[x.batch]) != (0, size, 1):
        return t.refuse(eqn, "a part of the batch is cut out")
    bounds = tuple(inner(x, [int(n) for n in by_axis]) for by_axis in (start, stop, strides))
    return t.add(eqn, "slice", g.Slice(*bounds), (x.node,), x.axes)


def static_slice(t: Tracer, eqn: Any, x: Signal) -> Any:
    start, stop = eqn.params["start_indices"], eqn.params["limit_indices"]
    return cut(t, eqn, x, start, stop, eqn.params["strides"] or (1,) * len(start))


def dynamic_slice(t: Tracer, eqn: Any, x: Any, *starts: Any) -> Any:
    if any(isinstance(s, Signal) for s in starts):
        return t.refuse(eqn, "the place of a slice depends on the input")
    sizes, shape = eqn.params["slice_sizes"], eqn.invars[0].aval.shape
    start = [min(max(int(s), 0), n - k) for s, n, k in zip(starts, shape, sizes, strict=True)]
    stop = [s + k for s, k in zip(start, sizes, strict=True)]
    return cut(t, eqn, x, start, stop, (1,) * len(start))


def split(t: Tracer, eqn: Any, x: Signal) -> Any:
    axis, shape = eqn.params["axis"], eqn.invars[0].aval.shape
    edges = np.cumsum([0, *eqn.params["sizes"]])
    parts = []
    for low, high in itertools.pairwise(edges):
        start, stop = [0] * len(shape), list(shape)
        start[axis], stop[axis] = low, high
        parts.append(cut(t, eqn, x, start, stop, (1,) * len(shape)))
    return parts
