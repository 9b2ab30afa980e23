"""What the parts of a simulation take on a platform, as measured: what forms are chosen by."""

from dataclasses import dataclass

import jax

from tcl_jax.registry import Registry


@dataclass(frozen=True)
class Costs:
    """Seconds on one core, of float32.

    Attributes:
        product: of one multiply-accumulate in a product of matrices.
        convolution: in a convolution.
        crowded: in a convolution whose window has more places than its map.
        crowded_output: of one output of such a convolution of groups.
        byte: of one byte that is written to memory and read from there.
        weight: of one byte of weights, each time that they are used; of a product whose weights
            are more than the cache holds, twice that: they are laid out for it first.
        operation: of starting one operation, whatever its size.
        spread: of one neuron's value in a block, for each step that the block has: the longer the
            block, the less of it is still in the cache where it is read.
        block: what a block takes once, at least: where that is less, little is gained, and programs
            of blocks take longer to compile.
        cache: bytes of a core's share of the cache.
    """

    product: float
    convolution: float
    crowded: float
    crowded_output: float
    byte: float
    weight: float
    operation: float
    spread: float
    block: float
    cache: int


COSTS: Registry[Costs] = Registry("platform")
"""By platform; what is not here was not measured, and is left as it is."""

# Set by hand for an AMD EPYC with AVX2: operations so that `python -m benchmarks.forms` expects
# about what it measures; `operation` and `spread` so that blocks are as long as was fastest for
# CNET, VGG-16, ResNet-20 and MobileNet with 1 to 50 images.
COSTS["cpu"] = Costs(
    product=0.024e-9,
    convolution=0.027e-9,
    crowded=0.3e-9,
    crowded_output=30e-9,
    byte=0.05e-9,
    weight=0.1e-9,
    operation=10e-6,
    spread=0.1e-9,
    block=0.2e-3,
    cache=8 << 20,
)


def costs(platform: str | None = None) -> Costs | None:
    """Those of a platform, JAX's default when None; or None where they were not measured."""
    return COSTS.get(platform or jax.default_backend())
