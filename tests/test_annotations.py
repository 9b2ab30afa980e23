"""Tests check what annotations say of arrays, or those would soon be wrong."""

import jax.numpy as jnp
import jaxtyping
import pytest

from tcl_jax.data import DataInfo, standardize
from tcl_jax.training.step import cross_entropy

_INFO = DataInfo("grey", (4, 4, 1), 2, 10, 10, (0.5,), (0.25,), mirrors=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(3, int)),
        lambda: cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2)),
        lambda: standardize(jnp.zeros((4, 4, 1)), _INFO),
    ],
    ids=["axes", "type", "images"],
)
def test_arrays_are_those_of_annotations(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()
