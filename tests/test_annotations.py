"""Tests check what annotations say of arrays, or those would soon be wrong."""

import annotations
import jax.numpy as jnp
import jaxtyping
import numpy as np
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
    found = set()
    for _ in range(annotations.EVERY):  # of which one is checked, whatever was called before
        try:
            call()
        except Exception as error:
            found.add(type(error))
    assert jaxtyping.TypeCheckError in found


def test_of_many_calls_some_are_checked():
    checked = []
    sampled = annotations.sampled(lambda x: x, lambda x: checked.append(x) or x)
    many = annotations.ALWAYS + 5 * annotations.EVERY
    assert [sampled(number) for number in range(many)] == list(range(many))
    first, then = checked[: annotations.ALWAYS], checked[annotations.ALWAYS :]
    assert first == list(range(annotations.ALWAYS))
    assert np.all(np.diff(then) == annotations.EVERY) and len(then) == 5
