"""What every JAX primitive does to a signal: the node that it becomes, or why it is refused."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from tcl_jax import graph as g
from tcl_jax.clipping import CLIP_CALL
from tcl_jax.tracing import advice, layout, linear, selections
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


def _scatter_mul(t: Tracer, eqn: Any, x: Any, places: Any, factors: Any) -> Any:
    if not isinstance(x, Signal) or isinstance(places, Signal) or isinstance(factors, Signal):
        return t.refuse(eqn, "parts of one value are multiplied with the signal", advice.MASK)
    ones = np.ones(eqn.invars[0].aval.shape, eqn.invars[0].aval.dtype)
    return _scale(t, eqn, x, selections.carried_out(eqn, (ones, places, factors)), 0.0)


def _same(t: Tracer, eqn: Any, x: Signal) -> Any:
    return x


def _convert(t: Tracer, eqn: Any, x: Signal) -> Any:
    before, after = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
    if jnp.issubdtype(after, jnp.floating):
        return x if jnp.finfo(after).nmant >= FEWEST_BITS else _rounded(t, eqn, after)
    if jnp.issubdtype(after, jnp.complexfloating):
        return t.refuse(
            eqn,
            "currents are no complex numbers",
            "multiply by a real matrix instead, as jnp.fft.fft(jnp.eye(n)).real",
        )
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
    "conv_general_dilated": linear.conv,
    "dot_general": linear.dot,
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": lambda t, eqn, x: _scale(t, eqn, x, -1.0, 0.0),
    "reduce_window_sum": linear.pool,
    "reduce_sum": linear.sum_,
    "cumsum": linear.cumsum,
    "reshape": layout.reshape,
    "squeeze": layout.reshape,
    "expand_dims": layout.reshape,
    "broadcast_in_dim": layout.broadcast,
    "transpose": layout.transpose,
    "concatenate": layout.concatenate,
    "stack": layout.stack,
    "pad": layout.pad,
    "slice": layout.static_slice,
    "dynamic_slice": layout.dynamic_slice,
    "split": layout.split,
    "rev": selections.selection,
    "tile": selections.selection,
    "gather": selections.selection,
    "scatter": selections.selection,
    "dynamic_update_slice": selections.selection,
    "scatter-add": linear.scatter_add,
    "scatter-sub": linear.scatter_add,
    "scatter-mul": _scatter_mul,
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
           "stack", "pad", "slice", "dynamic_slice", "split", "rev", "tile", "gather", "scatter",
           "dynamic_update_slice", "copy", "stop_gradient")  # fmt: skip
TAKES_WHOLE = frozenset((*TAKES_REFUSED, *_LAYOUT, "convert_element_type"))
