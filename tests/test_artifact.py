"""The spiking network on disk: what is read is what was written, or an error."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tcl_jax import InputError, clip, convert, simulation
from tcl_jax.conversion import Artifact, graph, load, save

ABOUT = {"norm": "tcl", "lambda": {"neuron": 0.1, "per channel": [0.5, 1 / 3]}, "tcl": True}


def _network(w, x):
    """One of every kind of node that convert makes."""
    x = jax.lax.conv_general_dilated(
        x, w["conv"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = clip(nn.relu(x + w["b"]), 0.7)
    x = clip(nn.relu(nn.avg_pool(x, (2, 2), (2, 2)) + 0.1), w["lam"])
    y = clip(nn.relu(x * w["b"]), 0.3) + x
    y = jnp.pad(jnp.concatenate([y, x], 1), ((0, 0), (1, 0), (0, 1), (0, 0)))[:, 1:3, :2]
    y = y.transpose(0, 2, 1, 3)
    return (y.reshape(y.shape[0], -1) @ w["fc"]) + y.mean((1, 2)) @ w["fc"][:3]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    rng = np.random.default_rng(0)
    w = {
        "conv": rng.normal(0, 1, (3, 3, 2, 3)),
        "b": np.array([0.1, 0.2, 0.3]),
        "lam": np.array([0.5, 0.6, 0.7]),
        "fc": rng.normal(0, 1, (12, 100)),
    }
    w = jax.tree.map(lambda v: jnp.asarray(v, jnp.float32), w)
    x = jnp.asarray(rng.normal(0, 1, (5, 4, 4, 2)), jnp.float32)
    return Artifact(convert(_network, w, [x]), ABOUT)


@pytest.fixture
def folder(artifact, tmp_path) -> Path:
    save(artifact, tmp_path / "snn")
    return tmp_path / "snn"


def _assert_same(one: Artifact, other: Artifact) -> None:
    # The structure holds names, strides, shapes: all that is no array.
    assert jax.tree.structure(one.graph) == jax.tree.structure(other.graph)
    leaves = zip(jax.tree.leaves(one.graph), jax.tree.leaves(other.graph), strict=True)
    for a, b in leaves:
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert one.about == other.about


def test_the_network_has_every_kind_of_node(artifact):
    # Integer networks alone have Quantise; their own test saves and loads one.
    kinds = {type(node) for node in artifact.graph.nodes} | {graph.Quantise}
    assert kinds == set(graph.KINDS.values())


def test_a_round_trip_is_exact(artifact, folder):
    loaded = load(folder)
    _assert_same(loaded, artifact)
    x = jnp.ones((1, 4, 4, 2))
    counts = [simulation.simulate(form.graph, x, 20).counts for form in (loaded, artifact)]
    np.testing.assert_array_equal(*counts)


def test_saving_replaces(artifact, folder):
    save(Artifact(artifact.graph, {"norm": "max"}), folder)
    assert load(folder).about == {"norm": "max"}
    assert [path.name for path in folder.parent.iterdir()] == ["snn"]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in (folder / "arrays").rglob("*") if p.is_file() and p.stat().st_size)


def _data_file(folder: Path) -> Path:
    """The file of most of the arrays' own bytes: other large ones are copies, never read."""

    def needed(path: Path) -> bool:
        content = path.read_bytes()
        path.unlink()
        try:
            load(folder)
        except InputError:
            return True
        finally:
            path.write_bytes(content)
        return False

    return next(p for p in sorted(_files(folder), key=lambda p: -p.stat().st_size) if needed(p))


def _flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


# The file's last seventh is an index that orbax wrote again elsewhere, and never reads.
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.4, 0.6, 0.8])
def test_a_flipped_byte_of_the_arrays_is_noticed(fraction, folder):
    path = _data_file(folder)
    assert path.stat().st_size > 1000
    _flip(path, int(fraction * path.stat().st_size))
    with pytest.raises(InputError, match="convert the run again"):
        load(folder)


def test_no_flipped_byte_anywhere_gives_another_network(artifact, folder):
    # Some bytes carry nothing (times, copies of indices): then the network must be the same.
    noticed = 0
    for path in _files(folder):
        original = path.read_bytes()
        for position in {0, len(original) // 3, len(original) - 1}:
            _flip(path, position)
            try:
                _assert_same(load(folder), artifact)
            except InputError as error:
                noticed += 1
                assert "convert the run again" in str(error)
            path.write_bytes(original)
    assert noticed > 0
    _assert_same(load(folder), artifact)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_graph_is_noticed(part, folder):
    text = (folder / "graph.json").read_text()
    (folder / "graph.json").write_text(text[: int(part * len(text))])
    with pytest.raises(InputError, match=r"graph\.json is damaged .*: convert the run again"):
        load(folder)


def test_a_missing_array_file_is_noticed(folder):
    _data_file(folder).unlink()
    with pytest.raises(InputError, match="is damaged"):
        load(folder)


def test_a_node_that_is_none_is_noticed(folder):
    content = json.loads((folder / "graph.json").read_text())
    content["nodes"][1]["kind"] = "Convolution"
    (folder / "graph.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is damaged"):
        load(folder)


def test_a_newer_version_is_refused(folder):
    content = json.loads((folder / "graph.json").read_text())
    content["version"] = 2
    (folder / "graph.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="has format 2, this version reads 1"):
        load(folder)


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no spiking network in .*: make one with convert\.py"):
        load(tmp_path)
