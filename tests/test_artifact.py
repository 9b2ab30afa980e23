"""The spiking network on disk: what is read is what was written, or an error."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import wiring
from cli import environment
from flax import linen as nn

from tcl_jax import InputError, clip, convert, graph, simulation
from tcl_jax.conversion import Artifact, load, save
from tcl_jax.promotion import implicit

ABOUT = {"norm": "tcl", "lambda": {"neuron": 0.1, "per channel": [0.5, 1 / 3]}, "tcl": True}


@implicit()
def _network(w, x):
    """One of every kind of node that convert makes."""
    layout = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, w["conv"], (1, 1), "SAME", dimension_numbers=layout)
    x = clip(nn.relu(x + w["b"]), 0.7)
    x = clip(nn.relu(nn.avg_pool(x, (2, 2), (2, 2)) + 0.1), w["lam"])
    y = clip(nn.relu(x * w["b"]), 0.3) + x
    y = jnp.pad(jnp.concatenate([y, x], 1), ((0, 0), (1, 0), (0, 1), (0, 0)))[:, 1:3, :2]
    y = jnp.einsum("bhwi,hio->bwho", jnp.cumsum(y, 1)[:, ::-1], w["by row"])
    return (y.reshape(y.shape[0], -1) @ w["fc"]) + y.mean((1, 2)) @ w["fc"][:3]


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    rng = np.random.default_rng(0)
    w = {
        "conv": rng.normal(0, 1, (3, 3, 2, 3)),
        "b": np.array([0.1, 0.2, 0.3]),
        "lam": np.array([0.5, 0.6, 0.7]),
        "by row": rng.normal(0, 1, (2, 3, 3)),
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
    kinds = {type(node.op) for node in artifact.graph.nodes} | {graph.Quantise}
    assert kinds == wiring.KINDS


def test_a_round_trip_is_exact(artifact, folder):
    loaded = load(folder)
    _assert_same(loaded, artifact)
    x = jnp.ones((1, 4, 4, 2))
    counts = [simulation.simulate(form.graph, x, 20).output.counts for form in (loaded, artifact)]
    np.testing.assert_array_equal(*counts)


def test_another_machine_s_devices_need_not_be_here(artifact, tmp_path):
    far = jax.device_put(artifact.graph, jax.devices()[3])
    save(Artifact(far, ABOUT), tmp_path / "snn")
    for file in tmp_path.glob("snn/arrays-*/_sharding"):
        file.write_text(file.read_text().replace("TFRT_CPU_3", "cuda:0"))
    found = load(tmp_path / "snn")
    _assert_same(found, artifact)
    assert {leaf.device for leaf in jax.tree.leaves(found.graph)} == {jax.devices()[0]}


def test_64_bits_are_not_rounded_to_32(tmp_path):
    with jax.enable_x64(True):
        third = jnp.full((2, 2), 1 / 3, jnp.float64)
        made = convert(lambda w, x: clip(jax.nn.relu(x @ w), 1.0), third, [jnp.ones((1, 2))])
        save(Artifact(made, ABOUT), tmp_path / "snn")
        _assert_same(load(tmp_path / "snn"), Artifact(made, ABOUT))
    with pytest.raises(InputError, match=r"holds float64, of which .* float32: set JAX_ENABLE_X64"):
        load(tmp_path / "snn")


def test_saving_replaces(artifact, folder):
    save(Artifact(artifact.graph, {"norm": "max"}), folder)
    assert load(folder).about == {"norm": "max"}
    assert [path.name for path in folder.parent.iterdir()] == ["snn"]


def _arrays(folder: Path) -> Path:
    (found,) = folder.glob("arrays*")
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in _arrays(folder).rglob("*") if p.is_file() and p.stat().st_size)


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


def _noticed(path: Path, positions: Iterable[int], folder: Path, artifact: Artifact) -> list[bool]:
    """Whether each flipped byte is refused; where it is not, the network is the same."""
    original = path.read_bytes()
    found = []
    for position in positions:
        _flip(path, position)
        try:
            _assert_same(load(folder), artifact)
            found.append(False)
        except InputError as error:
            assert "convert the run again" in str(error)
            found.append(True)
        path.write_bytes(original)
    return found


def test_flipped_bytes_of_the_arrays_are_noticed(artifact, folder):
    path = _data_file(folder)
    size = path.stat().st_size
    noticed = _noticed(path, range(0, size, size // 10), folder, artifact)
    # Not those of indices that orbax wrote again elsewhere: another part of the file each time.
    assert noticed[0] and sum(noticed) > len(noticed) / 2


def test_no_flipped_byte_anywhere_gives_another_network(artifact, folder):
    # Some bytes carry nothing (times, copies of indices): then the network must be the same.
    noticed = []
    for path in _files(folder):
        size = path.stat().st_size
        noticed += _noticed(path, {0, size // 3, size - 1}, folder, artifact)
    assert any(noticed)


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


def _edit(folder: Path, change) -> None:
    content = json.loads((folder / "graph.json").read_text())
    change(content)
    (folder / "graph.json").write_text(json.dumps(content))


def test_the_structure_is_checksummed(artifact, folder):
    """Every number, name and word of it, changed: never another network."""

    def places(value, path=()):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            if isinstance(inner, dict | list):
                yield from places(inner, (*path, key))
            else:
                yield (*path, key)

    def changed(content, path):
        *outer, last = path
        for key in outer:
            content = content[key]
        old = content[last]
        content[last] = not old if isinstance(old, bool) else 3 if old != 3 else 4

    content = json.loads((folder / "graph.json").read_text())
    found = list(places(content))
    assert len(found) > 100
    for path in found:
        altered = copy.deepcopy(content)
        changed(altered, path)
        (folder / "graph.json").write_text(json.dumps(altered))
        with pytest.raises(InputError, match="convert the run again"):
            load(folder)
    # However it is laid out.
    (folder / "graph.json").write_text(json.dumps(content))
    _assert_same(load(folder), artifact)


def test_a_newer_version_is_refused(folder):
    _edit(folder, lambda content: content.update(version=4))
    with pytest.raises(InputError, match="has format 4, this version reads up to 3"):
        load(folder)


def test_the_first_format_is_read(artifact, tmp_path):
    """It had no checksum of the structure, one folder of arrays, and neither clips nor units."""
    folder = Path(shutil.copytree(golden.SAVED / "branches", tmp_path / "snn"))

    def as_it_was(content):
        content["version"] = 1
        del content["arrays"], content["crc32"]

    with jax.enable_x64(True):
        then = load(folder)
        assert all(np.isnan(n.op.unit) and np.all(n.op.clip == 1) for n in then.graph.neurons)
        _arrays(folder).rename(folder / "arrays")
        _edit(folder, as_it_was)
        for n, other in zip(load(folder).graph.nodes, then.graph.nodes, strict=True):
            jax.tree.map(np.testing.assert_array_equal, n, other)
        known = {n.name: 0.1 * i for i, n in enumerate(then.graph.neurons)}
        _edit(folder, lambda content: content.update(about={"lambda": known}))
        assert {n.name: n.op.unit for n in load(folder).graph.neurons} == known
        _flip(_data_file(folder), 0)
        with pytest.raises(InputError, match="is damaged"):
            load(folder)
    save(artifact, folder)
    _assert_same(load(folder), artifact)
    assert sorted(path.name[:7] for path in folder.iterdir()) == ["arrays-", "graph.j"]


def test_neighbours_are_left_alone(artifact, tmp_path):
    kept = [tmp_path / name / "mine" for name in ("snn.old", "snn.new", "snn/notes", "snn/arrays")]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.write_text("of the user")
    for _ in range(2):
        save(artifact, tmp_path / "snn")
    assert all(path.read_text() == "of the user" for path in kept)
    _assert_same(load(tmp_path / "snn"), artifact)


@pytest.mark.parametrize("said", ["", ".", "..", "../kept", "notes", 3, None])
def test_only_arrays_are_removed(said, artifact, folder):
    kept = [folder.parent / "kept", folder / "notes", folder / "arrays"]
    for path in kept:
        path.mkdir()
        (path / "mine").write_text("of the user")
    _edit(folder, lambda content: content.update(arrays=said))
    save(artifact, folder)
    assert all((path / "mine").read_text() == "of the user" for path in kept)
    _assert_same(load(folder), artifact)


def test_what_cannot_be_written_leaves_the_old_one_whole(artifact, folder, monkeypatch):
    other = Artifact(artifact.graph, {"norm": "max"})

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for call in ("fsync", "replace"):  # neither of which orbax calls
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(InputError, match=r"cannot be written to .*snn \(.*No space left"):
                save(other, folder)
        _assert_same(load(folder), artifact)
        assert sorted(path.name[:7] for path in folder.iterdir()) == ["arrays-", "graph.j"]


def test_a_place_that_is_a_file_is_refused(artifact, tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "snn"):
        with pytest.raises(InputError, match=f"cannot be written to {place} "):
            save(artifact, place)


def test_numbers_as_keys_are_read_as_words(artifact, tmp_path):
    save(Artifact(artifact.graph, {"T": {9: 0.5, 10: 0.6}}), tmp_path / "snn")
    assert load(tmp_path / "snn").about == {"T": {"9": 0.5, "10": 0.6}}


def test_killed_at_any_moment_the_old_one_or_the_new_is_whole(artifact, folder, tmp_path):
    """A process that saves the one and the other in turn, killed again and again."""
    program = (
        "import sys\n"
        "from tcl_jax.conversion import Artifact, load, save\n"
        "found = load(sys.argv[1])\n"
        "n = 0\n"
        "while True:\n"
        "    save(Artifact(found.graph, {'norm': str(n)}), sys.argv[1])\n"
        "    n += 1\n"
        "    print(n, flush=True)\n"
    )
    seen = set()
    for pause in (0.0, 0.05):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder)],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        for _ in range(3):
            process.stdout.readline()
            found = load(folder)  # whole while it is replaced, too
            _assert_same(Artifact(found.graph, ABOUT), artifact)
        time.sleep(pause)
        process.kill()
        process.communicate()
        found = load(folder)
        _assert_same(Artifact(found.graph, ABOUT), artifact)
        seen.add(found.about["norm"])
    assert all(norm.isdigit() for norm in seen)
    # What it left unfinished is not taken for a user's file, nor in the way.
    save(artifact, folder)
    _assert_same(load(folder), artifact)


def test_arrays_of_conversions_long_killed_are_removed(artifact, folder):
    left = [folder / "arrays-0000", folder / "arrays-1111"]
    for path in left:
        path.mkdir()
    long_ago = time.time() - 2 * 86400
    os.utime(left[0], (long_ago, long_ago))
    save(artifact, folder)
    assert [path.exists() for path in left] == [False, True]  # one may be being written


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no spiking network in .*: make one with convert\.py"):
        load(tmp_path)


@pytest.mark.parametrize("shape", [(4, 4, 2), (3, 4, 4, 2), (2, 3, 4, 4, 2)])
def test_own_images_are_standardised_as_those_of_the_training(artifact, shape):
    mean, std = [0.2, 0.7], [0.1, 0.3]
    knowing = Artifact(artifact.graph, {**ABOUT, "standardisation": {"mean": mean, "std": std}})
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = knowing.standardize(pixels)
    expected = (pixels / 255 - np.array(mean)) / np.array(std)
    assert found.dtype == jnp.float32 and found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((4, 4, 2)), "pixels from 0 to 255, as uint8, got float64"),
        ([[0, 1], [2, 3]], "as uint8, got list"),
        (np.zeros((8, 4, 2), np.uint8), r"takes images of shape \(4, 4, 2\), got \(8, 4, 2\)"),
        (np.zeros((4, 4), np.uint8), r"takes images of shape \(4, 4, 2\), got \(4, 4\)"),
    ],
)
def test_what_are_no_such_images_is_refused(artifact, pixels, said):
    about = {"standardisation": {"mean": [0.5] * 2, "std": [0.5] * 2}}
    knowing = Artifact(artifact.graph, about)
    with pytest.raises(InputError, match=said):
        knowing.standardize(pixels)


def test_an_artifact_that_does_not_know_its_standardisation_says_so(artifact):
    with pytest.raises(InputError, match="convert the run again"):
        artifact.standardize(np.zeros((4, 4, 2), np.uint8))


def test_nodes_are_found_by_name(artifact):
    found = artifact.graph
    assert all(found.node(node.name) is node for node in found.nodes)
    with pytest.raises(InputError, match="no node 'nueron': the closest are neuron"):
        found.node("nueron")
