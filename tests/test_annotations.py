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
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_a_function_is_checked_once_for_every_kind_of_arguments():
    calls = []

    def called(how):
        return lambda *arguments, **named: calls.append(how)

    function = annotations.once_a_kind(called("plain"), called("checked"))
    for shape, dtype, axis in ((2, int, 0), (3, int, 0), (3, float, 0), (3, float, 1)):
        for _ in range(2):
            function([jnp.zeros(shape, dtype)], given={"as": np.zeros(shape)}, axis=axis)
    assert calls == ["checked", "plain"] * 4


def test_what_fails_or_was_not_checked_is_checked_again(unchecked):
    def fails(x):
        raise TypeError

    function = annotations.once_a_kind(lambda x: x, fails)
    for _ in range(2):
        with pytest.raises(TypeError):
            function(1)
    count = []
    function = annotations.once_a_kind(lambda x: x, count.append)
    function(1)  # while checks are off
    function(1)
    assert count == [1, 1]
