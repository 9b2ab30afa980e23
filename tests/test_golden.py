"""Spikes are those that were recorded, bit for bit; see `golden`."""

import golden
import numpy as np
import pytest


@pytest.mark.parametrize("name", golden.SIMULATIONS)
def test_spikes_are_golden(name):
    found, expected = golden.measured(name), golden.recorded(name)
    assert found.keys() == expected.keys()
    for what, values in expected.items():
        np.testing.assert_array_equal(found[what], values, err_msg=what)
        if what.startswith("spikes"):
            assert 0.02 < values.mean() < 0.98, "silence would agree with anything"
