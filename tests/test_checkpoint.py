"""Checkpoints: which are kept, and that damage is never restored."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.training import Checkpoints


def state(seed: int = 0) -> dict:
    key = jax.random.key(seed)
    return {
        "params": {"conv": {"kernel": jax.random.normal(key, (3, 3, 8, 16))}, "lam": jnp.ones(())},
        "step": jnp.asarray(seed, jnp.int32),
    }


def same(a: dict, b: dict) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(7, state(7), accuracy=0.5)
    return folder


def restore(folder: Path, step: int, like: dict | None = None) -> dict:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(step, like or state())


def test_a_state_comes_back_bit_for_bit(saved):
    assert same(restore(saved, 7), state(7))


def test_the_last_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6], start=1):
            checkpoints.save(step, state(step), accuracy)
        assert sorted(checkpoints.steps) == [2, 4]
        assert (checkpoints.best_step, checkpoints.last_step) == (2, 4)
    assert same(restore(tmp_path, 2), state(2))


def test_a_resumed_run_keeps_the_best_from_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 0.9)
        checkpoints.save(2, state(2), 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best_step, checkpoints.last_step) == (1, 2)
        checkpoints.save(3, state(3), 0.6)
        assert sorted(checkpoints.steps) == [1, 3]
        checkpoints.save(4, state(4), 0.95)
        assert checkpoints.steps == [4]


def test_an_interruption_has_no_accuracy_and_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        assert (checkpoints.best_step, checkpoints.last_step) == (None, 1)
        checkpoints.save(2, state(2), 0.5)
        checkpoints.save(3, state(3))
        assert (checkpoints.best_step, checkpoints.last_step) == (2, 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best_step, checkpoints.last_step) == (2, 3)


def test_a_folder_without_checkpoints(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.steps == []
        assert checkpoints.last_step is None and checkpoints.best_step is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"params": {"conv": {"kernel": jnp.ones((3, 3, 8, 4))}, "lam": jnp.ones(())}}, "[3, 3, 8"),
        ({"params": {"conv": {"kernel": jnp.ones((3, 3, 8, 16))}}}, "params/lam"),
        ({"step": jnp.zeros((), jnp.float32)}, "at step"),
        ({"more": jnp.ones(2)}, "nothing"),
    ],
    ids=["shape", "missing", "dtype", "additional"],
)
def test_another_network_is_refused(saved, changed, words):
    with pytest.raises(InputError, match="is of another network") as refused:
        restore(saved, 7, state() | changed)
    assert words in str(refused.value)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {"flipped": _flip, "truncated": _truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_is_never_restored(saved, tmp_path, how):
    """Each file in turn: the very state comes back, or a sentence says that it cannot."""
    refused = []
    files = [f.relative_to(saved) for f in sorted(saved.rglob("*")) if f.is_file()]
    for name in files:
        folder = tmp_path / "damaged"
        shutil.copytree(saved, folder)
        if (folder / name).stat().st_size:
            DAMAGE[how](folder / name)
        elif how == "deleted":
            (folder / name).unlink()
        try:
            with Checkpoints(folder) as checkpoints:
                step = checkpoints.last_step
                assert checkpoints.best_step in (step, None), name
                if step is None:
                    refused.append(str(name))  # no longer a checkpoint, and not taken for one
                else:
                    assert same(checkpoints.restore(step, state()), state(7)), name
        except InputError as error:
            assert str(folder) in str(error) and len(str(error)) < 500, name
            refused.append(str(name))
        shutil.rmtree(folder)
    assert any("state" in name for name in refused)
    assert any("checksums/metadata" in name for name in refused)


def test_flipped_bits_that_orbax_restores_are_found(tmp_path, monkeypatch):
    """The checksum alone: what is read differs from what was saved in one bit."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1))
        found = checkpoints._manager.restore

        def altered(*args, **kwargs):
            restored = found(*args, **kwargs)
            kernel = np.array(restored.state["params"]["conv"]["kernel"])
            kernel.view(np.uint32).flat[100] ^= 1
            restored.state["params"]["conv"]["kernel"] = kernel
            return restored

        monkeypatch.setattr(checkpoints._manager, "restore", altered)
        with pytest.raises(InputError, match="checksum of params/conv/kernel differs"):
            checkpoints.restore(1, state())
