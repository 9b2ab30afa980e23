"""Convolution, in the form that the platform at hand computes fast."""

import itertools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def convolve(
    x: Float[Array, "b *in_space i"],
    kernel: Float[Array, "*window in_group o"],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Float[Array, "b *out_space o"]:
    """A convolution of signals whose channels are last.

    A depthwise one is a sum of shifted products on a CPU, where XLA runs the general form a
    hundred times slower; the two differ in the order of their sums.

    >>> import jax.numpy as jnp
    >>> x, kernel = jnp.arange(8.0).reshape(1, 4, 2), jnp.array([[[1.0, 2.0]], [[1.0, 0.0]]])
    >>> convolve(x, kernel, (1,), ((0, 0),), (1,), groups=2)[0].tolist()
    [[2.0, 2.0], [6.0, 6.0], [10.0, 10.0]]
    """
    spatial = "".join("DHW"[3 - (x.ndim - 2) :])

    def general(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
            feature_group_count=groups,
        )

    def shifted(x: Array, kernel: Array) -> Array:
        # Input channel g feeds the outputs of group g, which are neighbours.
        x = jnp.repeat(x, kernel.shape[-1] // groups, axis=-1)
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        window = kernel.shape[:-2]
        steps = zip(x.shape[1:-1], window, strides, dilation, strict=True)
        sizes = [(n - (w - 1) * d - 1) // s + 1 for n, w, s, d in steps]
        terms = []
        for place in itertools.product(*map(range, window)):
            start = [p * d for p, d in zip(place, dilation, strict=True)]
            stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, sizes, strides, strict=True)]
            part = lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
            terms.append(part * kernel[place][0])
        return sum(terms[1:], terms[0])

    if groups == 1 or kernel.shape[-2] != 1 or min(s for p in padding for s in p) < 0:
        return general(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=shifted, default=general)
