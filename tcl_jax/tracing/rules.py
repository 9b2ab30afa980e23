"""What every JAX primitive does to a signal: the node that it becomes, or why it is refused."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from tcl_jax import graph as g
from tcl_jax.clipping import CLIP_CALL
from tcl_jax.tracing import advice, layout
from tcl_jax.tracing.tracer import (
    FEWEST_BITS,
    Placeholder,
    Refused,
    Rule,
    Signal,
    Tracer,
)

_CLIP_ADVICE = "write clip(nn.relu(x), lam), or use TCL"


# --- Activations --------------------------------------------------------------------------------


def _max(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    x, other = (a, b) if isinstance(a, Signal) else (b, a)
    if isinstance(other, Signal) or np.any(np.asarray(other) != 0):
        return t.refuse(
            eqn, "max of the signal with something other than 0 is no ReLU", advice.MAXIMUM
        )
    if isinstance(t.nodes[x.node].op, g.Population):
        return x  # never negative
    return t.add(eqn, "relu", g.Population.clipped(t.array(np.inf)), (x.node,), x.axes)


def _min(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    """A ReLU with a fixed bound, as nn.relu6."""
    x, bound = (a, b) if isinstance(a, Signal) else (b, a)
    clips = not isinstance(bound, Signal) and bool(np.all(np.asarray(bound) > 0))
    if clips and isinstance(t.nodes[x.node].op, g.Population | Placeholder):
        return _clip(t, eqn, x, bound)
    return t.refuse(eqn, "this minimum is no clip after a ReLU", advice.MINIMUM)


def _clip(t: Tracer, eqn: Any, a: Any, lam: Any) -> Any:
    if isinstance(lam, Signal):
        return t.refuse(eqn, "λ depends on the input", "make it a parameter")
    relu = t.nodes[a.node]
    if isinstance(relu.op, Placeholder):
        return Refused()
    if not isinstance(relu.op, g.Population):
        return t.refuse(eqn, "clip without a ReLU before it", _CLIP_ADVICE)
    if np.any(np.isnan(np.asarray(lam))):
        return t.refuse(eqn, "a λ is not a number", "training diverged? give earlier weights")
    if not bool(np.all(np.asarray(lam) > 0)):
        return t.refuse(eqn, "a λ is not above 0", "train with a smaller α or learning rate")
    bound = _constant(t, a, lam)
    if bound is None:
        return t.refuse(eqn, "λ has a batch axis", "give one a layer or a channel")
    # A neuron of its own: the bare ReLU stays for whoever else reads it, or is dropped.
    # The ReLU may be clipped already, and then the smaller bound holds.
    smaller = t.array(jnp.minimum(relu.op.clip, bound))
    return t.add(eqn, "neuron", g.Population.clipped(smaller), relu.inputs, a.axes)


# --- Elementwise --------------------------------------------------------------------------------


def _constant(t: Tracer, x: Signal, value: Any) -> Any:
    """A constant laid out as the signal's node and without the batch, or None if it has one."""
    rank = len(x.axes)
    array = np.asarray(value, t.dtype)
    if array.ndim > rank:
        return None
    if not array.ndim:
        return t.array(array)
    array = array.reshape((1,) * (rank - array.ndim) + array.shape)
    array = array.transpose([x.axes.index(i) for i in range(rank)])
    if not np.array_equal(array, np.broadcast_to(array[:1], array.shape), equal_nan=True):
        return None
    return t.array(array[0])


def _scale(t: Tracer, eqn: Any, x: Signal, scale: Any, shift: Any) -> Any:
    arrays = [_constant(t, x, v) for v in (scale, shift)]
    if any(a is None for a in arrays):
        return t.refuse(eqn, "a constant differs between the images of a batch")
    return t.add(eqn, "scale", g.Scale(*arrays), (x.node,), x.axes)


def _add(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if not (isinstance(a, Signal) and isinstance(b, Signal)):
        x, constant = (a, b) if isinstance(a, Signal) else (b, a)
        return _scale(t, eqn, x, 1.0, constant)
    if a.batch != b.batch:
        return t.refuse(eqn, "two signals are added whose images lie along different axes")
    b = t.arranged(b, a.axes)
    return t.add(eqn, "add", g.Add(), (a.node, b.node), a.axes)


def _sub(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if not isinstance(b, Signal):
        return _scale(t, eqn, a, 1.0, -np.asarray(b, t.dtype))
    negative = _scale(t, eqn, b, -1.0, 0.0)
    return negative if isinstance(negative, Refused) else _add(t, eqn, a, negative)


def _mul(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Signal) and isinstance(b, Signal):
        return t.refuse(eqn, "the product of two signals is not affine")
    x, constant = (a, b) if isinstance(a, Signal) else (b, a)
    return _scale(t, eqn, x, constant, 0.0)


def _div(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(b, Signal):
        return t.refuse(eqn, "division by the signal is not affine")
    return _scale(t, eqn, a, 1.0 / np.asarray(b, t.dtype), 0.0)


def _select(t: Tracer, eqn: Any, which: Any, *cases: Any) -> Any:
    """A choice by constants: the sum of every case where it is chosen, and 0 elsewhere."""
    if isinstance(which, Signal):
        return t.refuse(eqn, "the signal chooses between values")
    chosen = [np.asarray(which) == number for number in range(len(cases))]
    pairs = list(zip(cases, chosen, strict=True))
    shift = sum(np.where(at, c, 0.0) for c, at in pairs if not isinstance(c, Signal))
    total: Any = None
    for case, at in pairs:
        if not isinstance(case, Signal) or isinstance(total, Refused):
            continue
        term = _scale(t, eqn, case, at, 0.0 if total else shift)
        both = total and not isinstance(term, Refused)
        total = _add(t, eqn, total, term) if both else term
    return total


def _same(t: Tracer, eqn: Any, x: Signal) -> Any:
    return x


def _convert(t: Tracer, eqn: Any, x: Signal) -> Any:
    before, after = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    if jnp.issubdtype(after, jnp.floating):
        return x if jnp.finfo(after).nmant >= FEWEST_BITS else _rounded(t, eqn, after)
    if jnp.issubdtype(after, jnp.complexfloating):
        return t.refuse(eqn, "currents are no complex numbers")
    # Pixels may be given more room.
    return x if np.can_cast(before, after, "safe") else _rounded(t, eqn, "whole numbers")


def _reduce_precision(t: Tracer, eqn: Any, x: Signal) -> Any:
    bits = eqn.params["mantissa_bits"]
    t.bits = min(t.bits, bits)
    return (
        x
        if bits >= FEWEST_BITS and eqn.params["exponent_bits"] >= 5
        else _rounded(t, eqn, f"{bits} bits")
    )


def _rounded(t: Tracer, eqn: Any, to: Any) -> Refused:
    return t.refuse(eqn, f"a cast to {to} rounds", "keep the signal in floating point")


# --- Linear maps --------------------------------------------------------------------------------


def _note_precision(t: Tracer, eqn: Any) -> None:
    """Note where a function asks for less than it is traced with: bfloat16, on some backend."""
    if eqn.params["precision"] != (lax.Precision.HIGHEST, lax.Precision.HIGHEST):
        t.bits = min(t.bits, FEWEST_BITS)


def _conv(t: Tracer, eqn: Any, x: Any, kernel: Any) -> Any:
    p, spec = eqn.params, eqn.params["dimension_numbers"]
    if not isinstance(x, Signal) or isinstance(kernel, Signal):
        return t.refuse(eqn, "the kernel of a convolution depends on the input")
    if p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]):
        return t.refuse(
            eqn,
            "a transposed or batch-grouped convolution is linear, but is not converted",
            "use a convolution or a dense layer",
        )
    if spec.lhs_spec[0] != x.batch:
        return t.refuse(eqn, "the batch of a convolution is not that of the images")
    _note_precision(t, eqn)
    x = t.arranged(x, _channels_last(spec.lhs_spec))
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


def _channels_last(spec: tuple[int, ...]) -> tuple[int, ...]:
    """Axes of a signal whose batch, features and space lie as in a convolution's specification."""
    return tuple(int(i) for i in np.argsort((spec[0], *spec[2:], spec[1])))


def _dot(t: Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, Signal) and isinstance(b, Signal):
        return t.refuse(eqn, "the product of two signals is not affine (attention?)")
    (contract_a, contract_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    signal_first = isinstance(a, Signal)
    x, contract, weight, with_ = (
        (a, contract_a, b, contract_b) if signal_first else (b, contract_b, a, contract_a)
    )
    if batch_a:
        if x.batch in (batch_a if signal_first else batch_b):
            return t.refuse(eqn, "every image meets weights of its own")
        return t.refuse(
            eqn,
            "a product with weights of its own at every position is linear, but is not converted",
            "multiply the flattened signal by one matrix instead",
        )
    if x.batch in contract:
        return t.refuse(eqn, "a sum over the batch mixes images")
    _note_precision(t, eqn)
    # From [batch, free axes, contracted axes] to [batch, free axes, those of the weight].
    rank = len(x.axes)
    free = [i for i in range(rank) if i not in contract]
    inner = [i for i in free if i != x.batch]
    axes = tuple(int(i) for i in np.argsort((x.batch, *inner, *contract)))
    batch, x = x.batch, t.arranged(x, axes)
    kept = [eqn.invars[not signal_first].aval.shape[i] for i in inner]
    weight = np.asarray(weight, t.dtype)
    rest = [i for i in range(weight.ndim) if i not in with_]
    outer = tuple(weight.shape[i] for i in rest)
    size = math.prod(weight.shape[i] for i in with_)
    matrix = t.array(weight.transpose([*with_, *rest]).reshape(size, -1))
    before = x.node if len(contract) == 1 else layout.reshaped(t, eqn, x, (*kept, size))
    x = t.add(eqn, "dense", g.Dense(matrix, None), (before,), ())
    node = x.node if len(outer) == 1 else layout.reshaped(t, eqn, x, (*kept, *outer))
    own = [0 if i == batch else 1 + inner.index(i) for i in free]
    others = [1 + len(inner) + k for k in range(len(outer))]
    return Signal(node, tuple(own + others if signal_first else others + own))


def _pool(t: Tracer, eqn: Any, x: Signal) -> Any:
    p = eqn.params
    if p["window_dimensions"][x.batch] != 1:
        return t.refuse(eqn, "pooling over the batch mixes images")
    if any(d != 1 for d in (*p["base_dilation"], *p["window_dilation"])):
        return t.refuse(
            eqn, "dilated pooling is linear, but is not converted", "use a convolution instead"
        )
    window, strides = (layout.inner(x, p[k]) for k in ("window_dimensions", "window_strides"))
    padding = tuple((int(low), int(high)) for low, high in layout.inner(x, p["padding"]))
    pool = g.Pool(t.array(1.0), window, strides, padding)
    return t.add(eqn, "pool", pool, (x.node,), x.axes)


def _sum(t: Tracer, eqn: Any, x: Signal) -> Any:
    summed = [int(a) for a in eqn.params["axes"]]
    if x.batch in summed:
        return t.refuse(eqn, "a sum over the batch mixes images", "batch norm? use inference mode")
    axes = tuple(sorted(x.axes[a] - 1 for a in summed))
    left = [axis for a, axis in enumerate(x.axes) if a not in summed]
    ranks = tuple(sorted(left).index(axis) for axis in left)
    return t.add(eqn, "sum", g.Sum(t.array(1.0), axes), (x.node,), ranks)


# --- Calls and control flow ---------------------------------------------------------------------


# These alone may be given refused values: they hand on what they do not touch.
def _call(t: Tracer, eqn: Any, *values: Any) -> list[Any]:
    return t.inline(eqn, eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")), list(values))


def _cond(t: Tracer, eqn: Any, index: Any, *values: Any) -> Any:
    if isinstance(index, Signal | Refused):
        return t.refuse(eqn)
    branches = eqn.params["branches"]
    return t.inline(eqn, branches[min(max(int(index), 0), len(branches) - 1)], list(values))


def _scan(t: Tracer, eqn: Any, *values: Any) -> Any:
    """A loop of known length over constants, as a scan over stacked layers, is unrolled."""
    p = eqn.params
    consts, carry = p["num_consts"], p["num_carry"]
    fixed, xs = values[:consts], values[consts + carry :]
    state = list(values[consts : consts + carry])
    if any(isinstance(x, Refused) for x in xs):
        return Refused()
    if any(isinstance(x, Signal) for x in xs):
        return t.refuse(eqn, "a scan over the signal itself", "write the loop in Python")
    ys = []
    for i in range(p["length"]):
        at = p["length"] - 1 - i if p["reverse"] else i
        now = [x[at] for x in xs]
        for all_of_them, one in zip(xs, now, strict=True):
            if all_of_them in t.drawn:
                t.drawn.add(one, frozenset(a - 1 for a in t.drawn.axes(all_of_them) if a))
        found = t.inline(eqn, p["jaxpr"], [*fixed, *state, *now])
        state = found[:carry]
        ys.append(found[carry:])
    stacked = []
    for y in zip(*(reversed(ys) if p["reverse"] else ys), strict=True):
        if any(isinstance(v, Signal | Refused) for v in y):
            return t.refuse(eqn, "a scan that stacks signals", "carry them, or write a Python loop")
        stacked.append(jnp.stack(y))
    return [*state, *stacked]


INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2",
            "checkpoint")  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(INLINED, _call),
    "cond": _cond,
    "scan": _scan,
    CLIP_CALL: _clip,
    "max": _max,
    "min": _min,
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": lambda t, eqn, x: _scale(t, eqn, x, -1.0, 0.0),
    "reduce_window_sum": _pool,
    "reduce_sum": _sum,
    "reshape": layout.reshape,
    "squeeze": layout.reshape,
    "expand_dims": layout.reshape,
    "broadcast_in_dim": layout.broadcast,
    "transpose": layout.transpose,
    "concatenate": layout.concatenate,
    "pad": layout.pad,
    "slice": layout.static_slice,
    "dynamic_slice": layout.dynamic_slice,
    "split": layout.split,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
    "select_n": _select,
    "copy": _same,
    "copy_p": _same,
    "name": _same,
    "sharding_constraint": _same,
    "stop_gradient": _same,
}
TAKES_REFUSED = frozenset((*INLINED, "cond", "scan"))
_LAYOUT = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "concatenate",
           "pad", "slice", "dynamic_slice", "split", "copy", "stop_gradient")  # fmt: skip
TAKES_WHOLE = frozenset((*TAKES_REFUSED, *_LAYOUT, "convert_element_type"))
