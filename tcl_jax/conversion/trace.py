"""From any JAX function to a spiking graph: an interpreter of its jaxpr.

Values that do not depend on the input are constants and are evaluated.  Values that do, the
signals, pass through affine primitives until they meet an activation: a ReLU, alone or followed by
`tcl_jax.clip`.  Everything else is refused, with the line of the user's own code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core
from jaxtyping import Array

from tcl_jax import clipping
from tcl_jax.clipping import CLIP_CALL
from tcl_jax.conversion import graph as g
from tcl_jax.errors import InputError

# Any size but 1 tells the batch from axes of length one; a prime is unlikely to be another axis.
_BATCH = 7


class UnsupportedOperation(InputError):
    """The function holds operations that no spiking network with IF neurons can carry out."""


@dataclass(frozen=True)
class _Signal:
    """A value that depends on the input: the node that makes it."""

    node: str


class _Refused:
    """The value of an operation that was refused, so that tracing finds all the others too."""


def trace(fn: Callable[[Array], Array], sample_input: Any) -> g.SpikingGraph:
    """The spiking graph of an inference function.

    Args:
        fn: maps a batch of inputs to logits, with its variables bound and in inference mode.
        sample_input: an input batch, or anything with its shape and dtype; only the shape after
            the batch axis matters.

    Returns:
        The graph, exactly as traced: not folded, thresholds λ (∞ for a ReLU without clip).

    Raises:
        UnsupportedOperation: an operation on the signal is not affine and no known activation.
            The message lists every one, with file and line.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import trace
    >>> graph = trace(lambda x: clip(jax.nn.relu(x @ jnp.eye(3)), 2.0), jnp.zeros((1, 3)))
    >>> [type(node).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Neuron', 'Output']
    """
    shape = tuple(sample_input.shape[1:])
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((_BATCH, *shape), sample_input.dtype))
    tracer = _Tracer(closed.jaxpr)
    tracer.nodes.append(g.Input("input", (), shape))
    outputs = tracer.run(closed.jaxpr, closed.consts, [_Signal("input")])
    if tracer.refusals:
        raise UnsupportedOperation(
            "cannot convert this network: " + "; ".join(dict.fromkeys(tracer.refusals))
        )
    if len(outputs) != 1 or not isinstance(outputs[0], _Signal):
        raise UnsupportedOperation(
            "cannot convert this function: it must return one array of logits, computed from its "
            "input"
        )
    one = jnp.ones((), jnp.float32)
    tracer.nodes.append(g.Output("output", (outputs[0].node,), one * jnp.inf, one))
    return g.SpikingGraph(_reachable(tracer.nodes))


class _Tracer:
    def __init__(self, jaxpr: Any) -> None:
        # That of the whole function serves its parts, which have other arguments.
        self.debug_info = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
        self.nodes: list[g.Node] = []
        self.refusals: list[str] = []
        self.scopes: list[str] = []  # name stacks of the calls that surround an equation
        self.calls: list[Any] = []  # those calls

    def run(self, jaxpr: Any, consts: Any, args: list[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            values = [v.val if isinstance(v, core.Literal) else env[v] for v in eqn.invars]
            env |= dict(zip(eqn.outvars, self.equation(eqn, values), strict=True))
        return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]

    def equation(self, eqn: Any, values: list[Any]) -> list[Any]:
        if any(isinstance(v, _Refused) for v in values):
            return [_Refused()] * len(eqn.outvars)
        if not any(isinstance(v, _Signal) for v in values):
            return self.constant(eqn, values)
        if eqn.params.get("name") == CLIP_CALL:
            return [self.clip(eqn, *values)]
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if inner is not None and eqn.primitive.name in _CALLS:
            # remat holds an open jaxpr, the others closed ones.
            jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "jaxpr") else (inner, ())
            self.scopes.append(str(eqn.source_info.name_stack))
            self.calls.append(eqn)
            results = self.run(jaxpr, consts, values)
            self.scopes.pop()
            self.calls.pop()
            return results
        rule = _RULES.get(eqn.primitive.name)
        if rule is None:
            return [self.refuse(eqn)] * len(eqn.outvars)
        return [rule(self, eqn, *values)]

    def constant(self, eqn: Any, values: list[Any]) -> list[Any]:
        """Carry out one equation on constants."""
        read = {
            v: x for v, x in zip(eqn.invars, values, strict=True) if not isinstance(v, core.Literal)
        }
        alone = core.Jaxpr((), list(read), eqn.outvars, [eqn], debug_info=self.debug_info)
        return list(core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*read.values()))

    def add(self, eqn: Any, kind: str, make: Callable[[str], g.Node]) -> _Signal:
        taken = {node.name for node in self.nodes}
        scope = "/".join(filter(None, (*self.scopes, str(eqn.source_info.name_stack))))
        name = base = scope if scope and scope not in taken else f"{scope or ''}/{kind}".strip("/")
        number = 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        self.nodes.append(make(name))
        return _Signal(name)

    def refuse(self, eqn: Any, why: str = "", instead: str = "") -> _Refused:
        # What JAX itself has jitted knows no line of the user; the call does.
        frames = [
            frame
            for where in (eqn, *reversed(self.calls))
            for frame in source_info_util.user_frames(where.source_info.traceback)
        ]
        libraries = ("/site-packages/flax/", clipping.__file__)
        frame = next((f for f in frames if not any(s in f.file_name for s in libraries)), None)
        place = f"{frame.file_name}:{frame.start_line}" if frame else "unknown place"
        name = eqn.primitive.name
        known_why, known_instead = _ADVICE.get(name, (f"{name} is not affine", _DEFAULT_ADVICE))
        self.refusals.append(f"{place}: {why or known_why} ({instead or known_instead})")
        return _Refused()

    def clip(self, eqn: Any, a: Any, lam: Any) -> Any:
        relu = next((n for n in self.nodes if isinstance(a, _Signal) and n.name == a.node), None)
        if isinstance(lam, _Signal):
            return self.refuse(eqn, "λ depends on the input", "make it a parameter")
        if not isinstance(relu, g.Neuron):
            return self.refuse(
                eqn, "clip without a ReLU before it", "write clip(nn.relu(x), lam), or use TCL"
            )
        if not bool(np.all(np.asarray(lam) > 0)):
            return self.refuse(eqn, "a λ is not above 0", "train with a smaller α or learning rate")
        threshold = np.asarray(lam, np.float32)
        if threshold.ndim >= eqn.invars[0].aval.ndim:
            if threshold.shape[0] != 1 or threshold.ndim > eqn.invars[0].aval.ndim:
                return self.refuse(eqn, "λ has a batch axis", "give one a layer or a channel")
            threshold = threshold[0]
        # A neuron of its own: the bare ReLU stays for whoever else reads it, or is dropped.
        # The ReLU may be clipped already, and then the smaller bound holds.
        smaller = jnp.minimum(relu.threshold, threshold)
        return self.add(eqn, "neuron", lambda name: g.Neuron(name, relu.inputs, smaller))


_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat", "remat2",
          "checkpoint"}  # fmt: skip
_DEFAULT_ADVICE = "build the network of affine maps with ReLU or TCL between them"
_ADVICE = {
    "reduce_window_max": ("max-pooling is not affine", "use average pooling and train again"),
    "erf": ("this activation (gelu?) is no ReLU", "use tcl_jax.TCL"),
    "erfc": ("this activation (gelu?) is no ReLU", "use tcl_jax.TCL"),
    "tanh": ("tanh is no ReLU", "use tcl_jax.TCL"),
    "logistic": ("sigmoid is no ReLU", "use tcl_jax.TCL"),
    "exp": ("exp (softmax?) is not affine", "return the logits without softmax"),
    "integer_pow": ("a power of the signal is not affine", _DEFAULT_ADVICE),
    "cond": ("control flow depends on the data", "choose the branch outside the network"),
    "while": ("control flow depends on the data", "unroll the loop"),
}


def _max(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    signal, other = (a, b) if isinstance(a, _Signal) else (b, a)
    if isinstance(other, _Signal) or np.any(np.asarray(other) != 0):
        return t.refuse(
            eqn, "max of the signal with something other than 0 is no ReLU", "use tcl_jax.TCL"
        )
    infinite = jnp.asarray(jnp.inf, jnp.float32)
    return t.add(eqn, "relu", lambda name: g.Neuron(name, (signal.node,), infinite))


def _conv(t: _Tracer, eqn: Any, x: Any, kernel: Any) -> Any:
    p = eqn.params
    if isinstance(kernel, _Signal) or not isinstance(x, _Signal):
        return t.refuse(eqn, "the kernel of a convolution depends on the input")
    if p["batch_group_count"] != 1 or any(d != 1 for d in p["lhs_dilation"]):
        return t.refuse(
            eqn, "transposed or batch-grouped convolution", "use a convolution or a dense layer"
        )
    spec = p["dimension_numbers"]
    rank = len(spec.lhs_spec)
    last = (0, *range(2, rank), 1)  # where batch, feature, *spatial go in a channels-last array
    to_last = tuple(spec.lhs_spec[i] for i in last)
    hwio = (*spec.rhs_spec[2:], spec.rhs_spec[1], spec.rhs_spec[0])
    from_last = tuple(int(i) for i in np.argsort([spec.out_spec[i] for i in last]))
    if to_last[0] != 0 or from_last[0] != 0:
        return t.refuse(eqn, "the batch is not the first axis of a convolution")
    signal = _transposed(t, eqn, x, to_last)
    array = jnp.transpose(jnp.asarray(kernel, jnp.float32), hwio)
    signal = t.add(
        eqn,
        "conv",
        lambda name: g.Conv(
            name,
            (signal.node,),
            array,
            None,
            tuple(p["window_strides"]),
            tuple((int(lo), int(hi)) for lo, hi in p["padding"]),
            tuple(p["rhs_dilation"]),
            p["feature_group_count"],
        ),
    )
    return _transposed(t, eqn, signal, from_last)


def _transposed(t: _Tracer, eqn: Any, x: _Signal, permutation: tuple[int, ...]) -> _Signal:
    if permutation == tuple(range(len(permutation))):
        return x
    axes = tuple(a - 1 for a in permutation[1:])
    return t.add(eqn, "transpose", lambda name: g.Transpose(name, (x.node,), axes))


def _dot(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    ((contract_a, contract_b), (batch_a, _)) = eqn.params["dimension_numbers"]
    if isinstance(a, _Signal) and isinstance(b, _Signal):
        return t.refuse(
            eqn, "the product of two signals is not affine (attention?)", _DEFAULT_ADVICE
        )
    if (
        not isinstance(a, _Signal)
        or batch_a
        or tuple(contract_a) != (eqn.invars[0].aval.ndim - 1,)
        or np.ndim(b) != 2
    ):
        return t.refuse(
            eqn, "only products signal @ matrix over the last axis are supported", "write x @ w"
        )
    matrix = jnp.asarray(b, jnp.float32)
    matrix = matrix if tuple(contract_b) == (0,) else matrix.T
    return t.add(eqn, "dense", lambda name: g.Dense(name, (a.node,), matrix, None))


def _scale(t: _Tracer, eqn: Any, x: _Signal, scale: Any, shift: Any) -> Any:
    values = [np.asarray(v, np.float32) for v in (scale, shift)]
    rank = eqn.outvars[0].aval.ndim
    if any(v.ndim == rank and np.ptp(v, axis=0).any() for v in values):
        return t.refuse(eqn, "a constant differs between the images of a batch")
    values = [v[0] if v.ndim == rank else v for v in values]
    arrays = [jnp.asarray(v) for v in values]
    return t.add(eqn, "scale", lambda name: g.Scale(name, (x.node,), *arrays))


def _add(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, _Signal) and isinstance(b, _Signal):
        return t.add(eqn, "add", lambda name: g.Add(name, (a.node, b.node)))
    signal, constant = (a, b) if isinstance(a, _Signal) else (b, a)
    return _scale(t, eqn, signal, 1.0, constant)


def _sub(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(b, _Signal):
        negative = _scale(t, eqn, b, -1.0, 0.0)
        return _add(t, eqn, a, negative)
    return _scale(t, eqn, a, 1.0, -np.asarray(b, np.float32))


def _mul(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(a, _Signal) and isinstance(b, _Signal):
        return t.refuse(eqn, "the product of two signals is not affine")
    signal, constant = (a, b) if isinstance(a, _Signal) else (b, a)
    return _scale(t, eqn, signal, constant, 0.0)


def _div(t: _Tracer, eqn: Any, a: Any, b: Any) -> Any:
    if isinstance(b, _Signal):
        return t.refuse(eqn, "division by the signal is not affine")
    return _scale(t, eqn, a, 1.0 / np.asarray(b, np.float32), 0.0)


def _pool(t: _Tracer, eqn: Any, x: Any) -> Any:
    p = eqn.params
    if p["window_dimensions"][0] != 1 or any(
        d != 1 for d in (*p["base_dilation"], *p["window_dilation"])
    ):
        return t.refuse(eqn, "pooling over the batch, or dilated")
    one = jnp.ones((), jnp.float32)
    return t.add(
        eqn,
        "pool",
        lambda name: g.Pool(
            name,
            (x.node,),
            tuple(p["window_dimensions"][1:]),
            tuple(p["window_strides"][1:]),
            tuple((int(lo), int(hi)) for lo, hi in p["padding"][1:]),
            one,
        ),
    )


def _sum(t: _Tracer, eqn: Any, x: Any) -> Any:
    axes = tuple(int(a) for a in eqn.params["axes"])
    if 0 in axes:
        return t.refuse(eqn, "a sum over the batch mixes images")
    one = jnp.ones((), jnp.float32)
    less = tuple(a - 1 for a in axes)
    return t.add(eqn, "sum", lambda name: g.Sum(name, (x.node,), less, one))


def _reshape(t: _Tracer, eqn: Any, x: Any, *_: Any) -> Any:
    before, after = eqn.invars[0].aval, eqn.outvars[0].aval
    if before.size != after.size or not after.ndim or after.shape[0] != _BATCH:
        return t.refuse(eqn, "the batch axis is not kept first", "reshape with x.shape[0] in front")
    if before.shape == after.shape:
        return x
    return t.add(eqn, "reshape", lambda name: g.Reshape(name, (x.node,), tuple(after.shape[1:])))


def _transpose(t: _Tracer, eqn: Any, x: Any) -> Any:
    permutation = tuple(int(a) for a in eqn.params["permutation"])
    if permutation[0] != 0:
        return t.refuse(eqn, "the batch axis is not kept first")
    return _transposed(t, eqn, x, permutation)


_RULES: dict[str, Callable[..., Any]] = {
    "max": _max,
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
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _reshape,
    "transpose": _transpose,
    "convert_element_type": lambda t, eqn, x: x,
    "copy": lambda t, eqn, x: x,
    "stop_gradient": lambda t, eqn, x: x,
}


def _reachable(nodes: list[g.Node]) -> tuple[g.Node, ...]:
    """Those that the output depends on, in order; the input always."""
    needed = {nodes[-1].name, "input"}
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(n for n in nodes if n.name in needed)
