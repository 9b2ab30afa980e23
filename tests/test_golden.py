"""Spikes are those that were recorded, bit for bit; see `golden`."""

import golden
import numpy as np
import pytest

NOW = [(name, False) for name in golden.SIMULATIONS]
THEN = [(path.name, True) for path in sorted(golden.SAVED.iterdir())]


@pytest.mark.parametrize(("name", "saved"), NOW + THEN)
def test_spikes_are_golden(name, saved):
    found, expected = golden.measured(name, saved), golden.recorded(name)
    assert found.keys() == expected.keys()
    for what, values in expected.items():
        np.testing.assert_array_equal(found[what], values, err_msg=what)
        if what.startswith("spikes"):
            assert 0.02 < values.mean() < 0.98, "silence would agree with anything"


def test_networks_of_every_kind_were_saved():
    assert [name for name, _ in THEN] == ["branches", "layouts", "residual"]
