"""From any JAX function to a spiking graph: an interpreter of its jaxpr.

Values that do not depend on the input are constants and are evaluated.  Values that do, the
signals, pass through affine primitives (`tcl_jax.tracing.rules`) until they meet an activation:
a ReLU, alone or clipped.  Everything else is refused, with the line of the user's own code.
"""

import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tcl_jax import graph as g
from tcl_jax.errors import InputError
from tcl_jax.graph.convolution import PRECISION
from tcl_jax.promotion import implicit
from tcl_jax.tracing.advice import place_of
from tcl_jax.tracing.rules import INLINED, RULES, TAKES_REFUSED, TAKES_WHOLE
from tcl_jax.tracing.tracer import Signal, Tracer

# Any sizes but 1 tell the batch from axes of length one; primes are unlikely to be other axes.
# What differs between the two depends on the number of images.
_BATCHES = (7, 13)


class UnsupportedOperation(InputError):
    """The function holds operations that no spiking network with IF neurons can carry out."""


class Traced(NamedTuple):
    """What tracing finds.

    Attributes:
        graph: of the function.
        epsilon: that of the narrowest type that the function or the graph computes in, and
            products of an explicit ``precision`` below the highest taken as of bfloat16.
    """

    graph: g.Graph
    epsilon: float


def trace(fn: Callable[[Array], Array], sample_input: Any) -> g.Graph:
    """The spiking graph of an inference function.

    Args:
        fn: maps a batch of inputs to logits, with its variables bound and in inference mode.
        sample_input: an input batch, or anything with its shape and dtype; only the shape after
            the batch axis matters.  The graph's arrays are float64 where it is, float32 otherwise.

    Returns:
        The graph, exactly as traced: not folded, thresholds λ (∞ for a ReLU without clip).

    Raises:
        UnsupportedOperation: an operation on the signal is not affine and no known activation.
            The message lists every one, with file and line.
        InputError: the function does not take batches of any size, or the sample is no batch.

    >>> import jax, jax.numpy as jnp
    >>> from tcl_jax import clip
    >>> from tcl_jax.conversion import trace
    >>> graph = trace(lambda x: clip(jax.nn.relu(x @ jnp.ones((3, 3))), 2.0), jnp.zeros((1, 3)))
    >>> [type(node.op).__name__ for node in graph.nodes]
    ['Input', 'Dense', 'Population', 'Output']
    """
    return traced(fn, sample_input).graph


def traced(fn: Callable[[Array], Array], sample_input: Any) -> Traced:
    """As `trace`, with the machine epsilon that the function computes with."""
    g.check_batch(sample_input)
    sample = jax.ShapeDtypeStruct(
        sample_input.shape, jax.dtypes.canonicalize_dtype(sample_input.dtype)
    )
    (tracer, nodes), (_, others) = (_walk(fn, sample, batch) for batch in _BATCHES)
    if differs := _differs(nodes, others):
        place = place_of(*tracer.origins.get(differs, ()))
        why = "what is computed depends on the number of images in the batch"
        instead = "compute the same whatever x.shape[0] is"
        if _differs(nodes, _walk(fn, sample, _BATCHES[0])[1]):
            why = "what is computed is something else at every call"
            instead = "draw random numbers, and keep count, outside the function"
        raise UnsupportedOperation(f"cannot convert this network: {place}: {why} ({instead})")
    return Traced(g.Graph(nodes), 2.0**-tracer.bits)


def _walk(fn: Any, sample: Any, batch: int) -> tuple[Tracer, tuple[g.Node[g.Kind], ...]]:
    shape = tuple(sample.shape[1:])
    try:
        # A function of its own, for JAX would remember the jaxpr of another call.
        batch_of = jax.ShapeDtypeStruct((batch, *shape), sample.dtype)
        with jax.default_matmul_precision(PRECISION):  # of products of weights with each other
            closed = jax.make_jaxpr(lambda x: fn(x))(batch_of)
    except Exception as error:  # the function is the user's, and so are its errors
        _explain(fn, sample, error)
        raise
    dtype = np.float64 if sample.dtype == np.float64 else np.float32
    tracer = Tracer(
        closed.jaxpr,
        batch,
        dtype,
        RULES,
        inlined=INLINED,
        takes_refused=TAKES_REFUSED,
        takes_whole=TAKES_WHOLE,
    )
    images = Signal(tracer.append(g.Input(shape), (), "input"), tuple(range(len(shape) + 1)))
    outputs = tracer.run(closed.jaxpr, closed.consts, [images])
    if tracer.refusals:
        raise UnsupportedOperation(
            "cannot convert this network: "
            + "; ".join(f"{p}: {r.why} ({r.instead})" for (p, _), r in tracer.refusals.items())
        )
    if len(outputs) != 1 or not isinstance(outputs[0], Signal) or outputs[0].batch != 0:
        join = "; join them, as by jnp.concatenate([a.reshape(len(a), -1), ...], axis=1)"
        raise UnsupportedOperation(
            "cannot convert this function: it must return one array of logits, computed from its "
            f"input, images first{join if len(outputs) > 1 else ''}"
        )
    logits = tracer.arranged(outputs[0], tuple(range(len(outputs[0].axes))))
    tracer.append(g.Output(tracer.array(np.inf), tracer.array(1.0)), (logits.node,), "output")
    return tracer, g.reached(tracer.nodes)


def _explain(fn: Any, sample: Any, error: Exception) -> None:
    """Raises InputError where a function that fails on a batch works on something else."""

    def works(*shape: int) -> bool:
        try:
            jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, sample.dtype))
        except Exception:
            return False
        return True

    with implicit():
        if works(_BATCHES[0], *sample.shape[1:]):
            return  # a setting of the user's is against it, and JAX says which
    lines = traceback.extract_tb(error.__traceback__)
    own = [li for li in lines if "/site-packages/" not in li.filename and li.filename != __file__]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    if works(*sample.shape) and works(_BATCHES[0], *sample.shape):
        raise InputError(
            f"{place}the function takes an array of shape {tuple(sample.shape)}, but no other "
            "number in front: if that is one image, put the images' axis in front, as in x[None]; "
            "if it is a batch, write x.shape[0] for the number of images"
        ) from error
    if works(*sample.shape):
        raise InputError(
            f"{place}the function is written for a batch of {sample.shape[0]} images: it must take "
            "a batch of any size, so write x.shape[0] for the number of images"
        ) from error
    if works(*sample.shape[1:]):
        raise InputError(
            f"{place}the function takes one image of shape {tuple(sample.shape[1:])} and not a "
            "batch: give jax.vmap of it"
        ) from error
    if works(1, *sample.shape):
        raise InputError(
            f"{place}an array of shape {tuple(sample.shape)} was given as a batch, but the "
            "function takes that shape as one image: put the images' axis in front, as in x[None]"
        ) from error


def _differs(nodes: tuple[g.Node[g.Kind], ...], others: tuple[g.Node[g.Kind], ...]) -> str | None:
    """The name of the first node that is not the same in both, weights and all; or None."""

    def same(a: Any, b: Any) -> bool:
        # Under an outer jit, weights may have no values yet.
        traced = isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer)
        return traced or np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)

    for one, other in zip(nodes, others, strict=False):
        flat: Any = [jax.tree.flatten(n) for n in (one, other)]
        (arrays, kind), (other_arrays, other_kind) = flat
        if kind != other_kind or not all(map(same, arrays, other_arrays)):
            return one.name
    return None if len(nodes) == len(others) else nodes[-1].name
