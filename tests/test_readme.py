"""What the README shows of a converted network does what it says."""

import re

import numpy as np
from cli import ROOT
from cli import converted as converted
from cli import trained as trained
from PIL import Image

from tcl_jax import data, simulation

IMAGES = 6


def shown(words: str) -> str:
    """The README's piece of Python that has some words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if words in block]
    return block


def test_looking_into_a_network_and_classifying_own_images(
    trained, converted, tmp_path, monkeypatch, capsys
):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "snn").symlink_to(trained.folder / converted)
    monkeypatch.chdir(tmp_path)
    digits = data.load("digits")
    pixels, labels = digits.test.gather(np.arange(IMAGES))
    read = []
    for image in pixels:
        Image.fromarray(image[..., 0]).save("digit.png")
        found: dict = {}
        exec(shown("digit.png"), found)
        printed = capsys.readouterr().out.splitlines()
        assert "'CNET/act1/tcl/neuron'" in printed[0] and "'output'" in printed[0]
        np.testing.assert_array_equal(found["x"], data.standardize(image[None], digits.info))
        assert 0 < found["spikes"]["CNET/act1/tcl/neuron"].sum(0).max() <= 100
        read.append(int(printed[-1].strip("[]")))
    # All at once, as simulate.py has them.
    graph, x = found["graph"], data.standardize(pixels, digits.info)
    state = simulation.simulate(graph, x, timesteps=100)
    assert read == simulation.classify(graph, state).tolist()
    assert np.mean(np.array(read) == labels) > 0.8
