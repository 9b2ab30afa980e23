"""What every operation says of itself is so: the laws by which scales move, bounds, paths.

The reference is the operation itself, carried out, and its matrix.  Numbers are multiples of powers
of two in float64: nothing is rounded.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring

from tcl_jax import graph as g
from tcl_jax.graph.ops.base import aligned, compact, constant_along, equal, rounded

RNG = np.random.default_rng(0)
SHAPE = (4, 3, 4)
"""Of what is read, in most rows."""
CONV = {"strides": (1, 2), "padding": ((1, 0), (0, 2)), "dilation": (2, 1)}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def numbers(*shape):
    """Multiples of 1/4, none of them 0."""
    return RNG.choice((-1.5, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0), shape)


@dataclass(frozen=True)
class Row:
    """An operation, and which of the laws it answers for a scale by channel, and one by place.

    Attributes:
        make: the operation, once numbers have 64 bits.
        by_channel, by_place: of ``then``, ``after``, ``carry``, ``split``, the first letters.
        shapes: of what it reads.
    """

    make: object
    by_channel: str
    by_place: str
    shapes: tuple = (SHAPE,)


def conv(groups, bias=True):
    kernel = numbers(2, 2, 4 // groups, 8)
    return lambda: g.Conv(
        jnp.asarray(kernel), jnp.asarray(numbers(8)) if bias else None, **CONV,
        groups=groups,
    )  # fmt: skip


def of(kind, *numbers, **structure):
    """Numbers become arrays only where the test has set their type."""
    return lambda: kind(*map(jnp.asarray, numbers), **structure)


OPERATIONS = {
    "convolution": Row(conv(1), "ta", ""),
    "convolution without bias": Row(conv(1, bias=False), "ta", ""),
    "grouped": Row(conv(2), "ta", ""),
    "depthwise": Row(conv(4), "ta", ""),
    "linear": Row(of(g.Dense, numbers(4, 5), numbers(5)), "ta", ""),
    "linear without bias": Row(lambda: g.Dense(jnp.ones((4, 5)), None), "ta", ""),
    "sparse": Row(of(g.Sparse, numbers(4, 5) * (RNG.random((4, 5)) < 0.4), numbers(5)), "ta", ""),
    "linear by column": Row(of(g.Linear, numbers(3, 4, 5), numbers(3, 5)), "ta", ""),
    "linear by place": Row(of(g.Linear, numbers(4, 3, 4, 2), numbers(4, 3, 2)), "ta", "ta"),
    "scale": Row(of(g.Scale, numbers(4), numbers(4)), "ta", "ta"),
    "masked": Row(of(g.Scale, numbers(4) * np.array([1, 0, 0, 1]), numbers(4)), "ta", "ta"),
    "scale by place": Row(of(g.Scale, numbers(4, 3, 1), numbers()), "ta", "ta"),
    "pool": Row(
        of(g.Pool, 0.25, window=(2, 2, 1), strides=(2, 1, 1), padding=((0, 0), (1, 0), (0, 0))),
        "cs", "",
    ),
    "pool over channels": Row(
        of(g.Pool, -0.5, window=(1, 1, 2), strides=(1, 1, 2), padding=((0, 0),) * 3), "", ""
    ),
    "every other row": Row(
        of(g.Pool, 1.0, window=(1, 1, 1), strides=(2, 1, 1), padding=((0, 0),) * 3), "cs", ""
    ),
    "global mean": Row(of(g.Sum, 0.125, axes=(0, 1)), "cs", "s"),
    "mean over rows": Row(of(g.Sum, 0.25, axes=(0,)), "cs", "s"),
    "sum over channels": Row(of(g.Sum, -1.0, axes=(2,)), "s", "s"),
    "reshape": Row(of(g.Reshape, shape=(2, 24)), "cs", "cs"),
    "transpose": Row(of(g.Transpose, axes=(2, 0, 1)), "cs", "cs"),
    "sum of two": Row(of(g.Add), "cs", "cs", (SHAPE, SHAPE)),
    "concatenation": Row(
        of(g.Concat, axis=2), "cs", "cs", (SHAPE, (4, 3, 1), SHAPE)
    ),
    "concatenated rows": Row(of(g.Concat, axis=0), "cs", "cs", (SHAPE, (2, 3, 4))),
    "padding": Row(of(g.Pad, padding=((1, 0, 0), (0, 2, 1), (0, 0, 0))), "cs", ""),
    "padded channels": Row(of(g.Pad, padding=((0, 0, 0), (0, 0, 0), (1, -1, 0))), "", ""),
    "cut": Row(of(g.Slice, start=(1, 0, 1), stop=(4, 3, 4), strides=(2, 1, 2)), "cs", "cs"),
    "picked columns": Row(of(g.Take, axis=1, index=(2, -1, 0, 0, 2)), "cs", "c"),
    "picked rows": Row(of(g.Take, axis=0, index=(3, -1, 0)), "cs", "cs"),
    "flipped channels": Row(of(g.Take, axis=2, index=(3, 2, 1, 0)), "cs", "cs"),
}  # fmt: skip
every_operation = pytest.mark.parametrize("name", OPERATIONS)
SIZES = {
    "one number": lambda shape: (),
    "by channel": lambda shape: shape[-1:],
    "by place": lambda shape: shape,
}
every_size = pytest.mark.parametrize("size", SIZES)


def values(shapes):
    return [jnp.asarray(numbers(2, *shape)) for shape in shapes]


def result(op, shapes):
    return tuple(jax.eval_shape(op.apply, *values(shapes)).shape[1:])


def times(scale, value):
    return jnp.asarray(scale * np.asarray(value))


def linear(op, *x):
    """What an operation does but for its constant."""
    return op.apply(*x) - op.apply(*map(jnp.zeros_like, x))


def answers(row, size, law):
    """Whether an operation is to answer."""
    affine = isinstance(row.make(), g.Affine)
    # One number passes every linear map; a kind with a factor or weights takes it up, too.
    always = "ta" if affine else "tcs" if hasattr(row.make(), "factor") else "cs"
    return (
        law in {"one number": always, "by channel": row.by_channel, "by place": row.by_place}[size]
    )


def scale_of(size, shape):
    """Powers of two that differ along every axis."""
    shape = SIZES[size](shape)
    return 2.0 ** (np.arange(np.prod(shape, dtype=int)).reshape(shape) % 5 - 2)


def test_every_kind_of_operation_has_a_row():
    kinds = {kind for kind in wiring.KINDS if issubclass(kind, g.Op)}
    assert {type(row.make()) for row in OPERATIONS.values()} == kinds - {g.Quantise}


@every_operation
@every_size
def test_then(name, size):
    row = OPERATIONS[name]
    op, x = row.make(), values(row.shapes)
    scale = scale_of(size, result(op, row.shapes))
    shift = 0 * scale if hasattr(op, "factor") else numbers(*scale.shape)
    found = op.then(scale, shift)
    assert (found is not None) == answers(row, size, "t")
    if found is not None:
        found = rounded(found, jnp.float64)
        np.testing.assert_array_equal(
            found.apply(*x), shift + np.asarray(times(scale, op.apply(*x)))
        )


@every_operation
@every_size
def test_after(name, size):
    row = OPERATIONS[name]
    op, x = row.make(), values(row.shapes)
    scales = [scale_of(size, shape) for shape in row.shapes]
    found = op.after(scales)
    assert (found is not None) == answers(row, size, "a")
    if found is not None:
        scaled = [times(s, v) for s, v in zip(scales, x, strict=True)]
        found = rounded(found, jnp.float64)
        np.testing.assert_array_equal(found.apply(*x), op.apply(*scaled))


@every_operation
@every_size
def test_carry(name, size):
    row = OPERATIONS[name]
    op, x = row.make(), values(row.shapes)
    scales = [scale_of(size, shape) for shape in row.shapes]
    if len(set(row.shapes)) == 1 or size == "one number":
        scales = scales[:1] * len(scales)  # a sum carries one scale, or none
    found = op.carry(scales, row.shapes)
    assert (found is not None) == answers(row, size, "c")
    if found is not None:
        scaled = [times(s, v) for s, v in zip(scales, x, strict=True)]
        np.testing.assert_array_equal(linear(op, *scaled), times(found, linear(op, *x)))


@every_operation
@every_size
def test_split(name, size):
    row = OPERATIONS[name]
    op, x = row.make(), values(row.shapes)
    scale = scale_of(size, result(op, row.shapes))
    found = op.split(scale, row.shapes)
    assert (found is not None) == answers(row, size, "s")
    if found is not None:
        scaled = [times(s, v) for s, v in zip(found, x, strict=True)]
        np.testing.assert_array_equal(linear(op, *scaled), times(scale, linear(op, *x)))


def test_different_scales_pass_where_both_can_be_kept_apart():
    add, join = (OPERATIONS[name].make() for name in ("sum of two", "concatenation"))
    one, two = np.asarray(1.0), np.asarray(2.0)
    assert add.carry([one, two], (SHAPE, SHAPE)) is None
    found = join.carry([one, two, one], ((1, 1, 2), (1, 1, 1), (1, 1, 2)))
    assert found.tolist() == [[[1, 1, 2, 1, 1]]]


def matrices(op, x):
    """The matrix of each value that is read."""
    to_linear = jax.jacobian(lambda *x: linear(op, *x)[0], tuple(range(len(x))))
    size = result(op, [v.shape[1:] for v in x])
    rows = int(np.prod(size))
    return [
        np.asarray(m)[..., 0, :, :, :].reshape(rows, -1) for m in to_linear(*(v[:1] for v in x))
    ]


@every_operation
def test_bounds_are_those_of_the_matrix(name):
    row = OPERATIONS[name]
    op, ends = row.make(), [values(row.shapes) for _ in range(2)]
    lows, highs = ([f(*pair)[:1] for pair in zip(*ends, strict=True)]
                   for f in (jnp.minimum, jnp.maximum))  # fmt: skip
    low, high = op.bounds(*zip(lows, highs, strict=True))
    constant = np.asarray(op.apply(*map(jnp.zeros_like, lows))).ravel()
    flat = [[np.asarray(v).ravel() for v in of] for of in (lows, highs)]
    expected_low = expected_high = constant
    for matrix, lowest, highest in zip(matrices(op, lows), *flat, strict=True):
        positive, negative = np.maximum(matrix, 0), np.minimum(matrix, 0)
        expected_low = expected_low + positive @ lowest + negative @ highest
        expected_high = expected_high + positive @ highest + negative @ lowest
    np.testing.assert_array_equal(np.asarray(low).ravel(), expected_low)
    np.testing.assert_array_equal(np.asarray(high).ravel(), expected_high)


@every_operation
def test_paths_are_the_places_of_the_matrix_that_are_not_zero(name):
    row = OPERATIONS[name]
    op, events = row.make(), [v[:1] for v in values(row.shapes)]
    pairs = zip(matrices(op, events), events, strict=True)
    expected = sum((m != 0) @ np.asarray(v).ravel() for m, v in pairs)
    np.testing.assert_array_equal(np.asarray(op.paths(*events)).ravel(), expected)


def test_rounding_lets_no_scale_pass():
    op = g.Quantise(jnp.asarray(2.0))
    half = np.asarray(0.5)
    assert op.carry([half], [(3,)]) is op.split(half, [(3,)]) is op.then(half, half) is None
    low, high = op.bounds((jnp.full((1, 1), -0.3), jnp.full((1, 1), 100.0)))
    assert (low.item(), high.item()) == (-1, 127)


def test_scales_are_told_apart_by_what_they_differ_along():
    by_row = np.array([[1.0], [2.0]]) * np.ones((2, 3))
    assert compact(by_row).shape == (2, 1) and compact(np.ones((2, 3))).shape == ()
    assert constant_along(by_row, [False, True]) and not constant_along(by_row, [True, False])
    assert aligned(by_row.T, (2,)) is not None and aligned(by_row, (2,)) is None
    assert equal(by_row, compact(by_row)) and not equal(by_row, by_row.T[:2, :2].max(keepdims=True))
