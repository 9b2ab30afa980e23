"""Sums of weighted inputs, in the form that the platform at hand computes fast."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Real

from tcl_jax.promotion import against, wider

# A TPU's default would round float32 weights to 8 bits, a GPU's to 11.
PRECISION = "highest"
"""Of every product of signals with weights: float32 ones are accurate to float32 everywhere."""


def convolve(
    x: Real[Array, "b *in_space i"],
    kernel: Real[Array, "*window in_group o"],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Real[Array, "b *out_space o"]:
    """A convolution of signals whose channels are last.

    A depthwise one is a sum of shifted products on a CPU, where XLA runs the general form a
    hundred times slower; the two differ in the order of their sums.  Types are those of `weigh`.

    >>> import jax.numpy as jnp
    >>> x, kernel = jnp.arange(8.0).reshape(1, 4, 2), jnp.array([[[1.0, 2.0]], [[1.0, 0.0]]])
    >>> convolve(x, kernel, (1,), ((0, 0),), (1,), groups=2)[0].tolist()
    [[2.0, 2.0], [6.0, 6.0], [10.0, 10.0]]
    """
    rank = x.ndim - 2
    spatial, ones = "DHW"[3 - rank :], (1,) * rank

    def general(
        x: Array,
        kernel: Array,
        *,
        strides: tuple[int, ...] = strides,
        padding: tuple[tuple[int, int], ...] = padding,
        dilation: tuple[int, ...] = dilation,
        **how: Any,
    ) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
            **how,
        )

    def by_place(product: Product) -> Product:
        """The sum over the window's places: of what each sees, times its weights."""

        def total(x: Array, kernel: Array, **how: Any) -> Array:
            margins = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
            x = lax.pad(x, jnp.zeros((), x.dtype), margins)
            window = kernel.shape[:-2]
            steps = zip(x.shape[1:-1], window, strides, dilation, strict=True)
            sizes = [(n - (w - 1) * d - 1) // s + 1 for n, w, s, d in steps]
            terms = []
            for place in itertools.product(*map(range, window)):
                start = [p * d for p, d in zip(place, dilation, strict=True)]
                stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
                seen = lax.slice(x, (0, *start, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))
                terms.append(product(seen, kernel[place], **how))
            return sum(terms[1:], terms[0])

        return total

    def depthwise(x: Array, weights: Array, *, preferred_element_type: Any, **how: Any) -> Array:
        x, weights = (a.astype(preferred_element_type) for a in (x, weights))
        # Input channel g feeds the outputs of group g, which are neighbours.
        x = jnp.repeat(x, weights.shape[-1] // groups, axis=-1)
        return x * against(weights[0], x)

    def pointwise(x: Array, weights: Array, **how: Any) -> Array:
        kernel = weights.reshape(*ones, *weights.shape)
        return general(x, kernel, strides=ones, padding=((0, 0),) * rank, dilation=ones, **how)

    cpu = by_place(depthwise) if is_depthwise(kernel, padding, groups) else general
    return weigh(x, kernel, general, cpu=cpu, whole=by_place(pointwise))


def is_depthwise(kernel: Array, padding: tuple[tuple[int, int], ...], groups: int) -> bool:
    """Whether a CPU takes the sum of shifted products: each output sees a single channel."""
    return groups > 1 and kernel.shape[-2] == 1 and min(s for p in padding for s in p) >= 0


Product = Callable[..., Array]


def weigh(
    x: Array,
    kernel: Array,
    product: Product,
    cpu: Product | None = None,
    whole: Product | None = None,
) -> Array:
    """``product(x, kernel, **how)``, as exactly as the type of the weights allows.

    Weights in float32 or float64 are multiplied and summed in that, on every backend; in bfloat16,
    which are float32 ones of fewer digits, in float32, or where both factors are of bfloat16 as
    such, which is exact, and summed in float32; in int8, summed as int32, exactly.

    Args:
        x: what is weighted.
        kernel: the weights.
        product: bilinear in both; the rest is what `jax.lax.dot_general` takes, ``precision`` and
            ``preferred_element_type``, that of the sums.
        cpu: the same, as a CPU likes it.
        whole: the same, in plain sums of products, which are exact where all are whole numbers.

    >>> import jax.numpy as jnp
    >>> x, kernel = jnp.array([[1, 1, 0]], jnp.int8), jnp.array([[100], [100], [1]], jnp.int8)
    >>> total = weigh(x, kernel, jnp.matmul)
    >>> total.item(), str(total.dtype)
    (200, 'int32')
    """
    cpu = cpu or product
    if kernel.dtype == jnp.int8:
        # Float32 holds every whole number below 2^24, and `quantise` keeps all sums below that.  A
        # CPU has fast sums of floats alone; a GPU has no convolution of whole numbers, and some of
        # its convolutions of floats weigh sums by fractions (Winograd's): none of one place.
        counted: Array = lax.platform_dependent(
            x,
            kernel,
            cpu=_in_float(cpu),
            tpu=lambda x, k: product(
                x, k.astype(x.dtype), precision=None, preferred_element_type=jnp.int32
            ),
            default=_in_float(whole or product),
        )
        return counted
    dtype = wider(kernel.dtype, jnp.float32)
    if not x.dtype == kernel.dtype == jnp.bfloat16:
        x, kernel = x.astype(dtype), kernel.astype(dtype)
    if cpu is product:
        return _sums(product, dtype)(x, kernel)
    on_cpu, elsewhere = _sums(cpu, dtype), _sums(product, dtype)
    found: Array = lax.platform_dependent(x, kernel, cpu=on_cpu, default=elsewhere)
    return found


def _sums(product: Product, dtype: Any) -> Product:
    return partial(product, precision=PRECISION, preferred_element_type=dtype)


def _in_float(product: Product) -> Callable[[Array, Array], Array]:
    """Of whole numbers, in float32."""
    sums = _sums(product, jnp.float32)
    return lambda x, k: sums(x.astype(jnp.float32), k.astype(jnp.float32)).astype(jnp.int32)
