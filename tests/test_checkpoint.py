"""Checkpoints: which are kept, and that damage is never restored."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tcl_jax.errors import InputError
from tcl_jax.training import Checkpoints
from tcl_jax.training.checkpoint import Damaged


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
        checkpoints.save(6, state(6), accuracy=0.3)
        checkpoints.save(7, state(7), accuracy=0.5)
    return folder


def restore(folder: Path, step: int, like: dict | None = None) -> dict:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(step, like or state())


def test_a_state_comes_back_bit_for_bit(saved):
    assert same(restore(saved, 7), state(7))


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6, 0.8], start=1):
            checkpoints.save(step, state(step), accuracy)
        assert checkpoints.steps == [2, 4, 5]
        assert (checkpoints.best_step, checkpoints.last_step) == (2, 5)
    assert same(restore(tmp_path, 2), state(2))


def test_an_accuracy_is_given_afterwards(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 0.5)
        checkpoints.save(2, state(2))
        assert (checkpoints.accuracy(2), checkpoints.best_step) == (None, 1)
        checkpoints.rate(2, 0.7)
        assert (checkpoints.accuracy(2), checkpoints.best_step) == (0.7, 2)
        checkpoints.rate(2, 0.5)
        assert checkpoints.by_accuracy() == [2, 1]  # of equals, the newest first


def test_no_step_is_saved_twice(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, state(2))
        for step in (1, 2):
            with pytest.raises(InputError, match=f"at step {step}, or after it"):
                checkpoints.save(step, state(9))
    assert same(restore(tmp_path, 2), state(2))


def test_a_resumed_run_keeps_the_best_from_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 0.9)
        checkpoints.save(2, state(2), 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.best_step, checkpoints.last_step) == (1, 2)
        checkpoints.save(3, state(3), 0.6)
        assert checkpoints.steps == [1, 2, 3]
        checkpoints.save(4, state(4), 0.95)
        assert checkpoints.steps == [3, 4]


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
    ("changed", "of", "words"),
    [
        (
            {"params": {"conv": {"kernel": jnp.ones((3, 3, 8, 4))}, "lam": jnp.ones(())}},
            "network",
            "at params/conv/kernel it holds float32[3, 3, 8, 16] where float32[3, 3, 8, 4]",
        ),
        (
            {"params": {"conv": {"kernel": jnp.ones((3, 3, 8, 16))}}},
            "network",
            "at params/lam it holds float32[] where nothing",
        ),
        (
            {"step": jnp.zeros((), jnp.float32)},
            "version's training",
            "at step it holds int32[] where float32[]",
        ),
        (
            {"momentum": jnp.ones(2)},
            "version's training",
            "at momentum it holds nothing where float32[2]",
        ),
    ],
    ids=["shape", "missing", "dtype", "additional"],
)
@pytest.mark.parametrize("parts", [False, True])
def test_another_state_is_refused(saved, changed, of, words, parts):
    with Checkpoints(saved) as checkpoints:
        with pytest.raises(InputError, match=f"is of another {of}: ") as refused:
            checkpoints.restore(7, state() | changed, parts=parts)
        assert not isinstance(refused.value, Damaged)
    assert words in str(refused.value)


def test_a_part_is_read_whatever_else_is_there(saved):
    wanted = {"params": state()["params"]}
    with Checkpoints(saved) as checkpoints:
        assert same(checkpoints.restore(7, wanted, parts=True), {"params": state(7)["params"]})
        with pytest.raises(InputError, match="at step it holds int32"):
            checkpoints.restore(7, wanted)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {"flipped": _flip, "truncated": _truncate, "deleted": Path.unlink}


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_is_passed_over(saved, tmp_path, how, caplog):
    """Each file in turn: the very state comes back, or the one before it with a sentence."""
    passed_over = []
    newest = [f.relative_to(saved) for f in sorted((saved / "7").rglob("*")) if f.is_file()]
    for name in newest:
        folder = tmp_path / "damaged"
        shutil.copytree(saved, folder)
        if how == "deleted" or (folder / name).stat().st_size:
            DAMAGE[how](folder / name)
        caplog.clear()
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.steps == [6, 7]
            step, found, damaged = checkpoints.first_intact(
                [7, 6], lambda s: checkpoints.restore(s, state())
            )
            assert same(found, state(step)), name
            assert damaged == [7] * (step == 6)
            # Without its accuracy a checkpoint is not the best; of another one, never.
            assert checkpoints.by_accuracy() in ([7, 6], [6]), name
            sentences = [r.message for r in caplog.records if r.name == "root"]
            if damaged:
                passed_over.append(str(name))
                assert sentences[0].startswith(f"checkpoint {folder / '7'} is damaged ("), name
                assert sentences[0].endswith("): the one of step 6 is read in its place"), name
                assert len(sentences[0]) < 500
                # As training does: the step is free for another state.
                checkpoints.set_aside(7)
                assert checkpoints.steps == [6]
                checkpoints.save(7, state(7), 0.6)
                assert same(checkpoints.restore(7, state()), state(7)), name
                assert (folder / "damaged-7").is_dir()
        shutil.rmtree(folder)
    assert any("state" in name for name in passed_over)
    assert "7/checksums/metadata" in passed_over
    assert how != "truncated" or "7/metrics/metrics" in passed_over


def test_a_flipped_accuracy_is_none(saved, tmp_path, caplog):
    folder = Path(shutil.copytree(saved, tmp_path / "flipped"))
    path = folder / "6" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.3", "0.7"))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.by_accuracy() == [7]
        assert "checksum of the accuracy differs): it is not taken for the best" in caplog.text
        with pytest.raises(Damaged):
            checkpoints.restore(6, state())


def test_nothing_intact_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step))
            _flip(tmp_path / str(step) / "checksums" / "metadata")
        with pytest.raises(InputError, match=r"/2 is damaged .*/1 is damaged .*from a copy"):
            checkpoints.first_intact([2, 1], lambda step: checkpoints.restore(step, state()))


def test_an_accuracy_as_older_versions_wrote_it(saved, tmp_path):
    folder = Path(shutil.copytree(saved, tmp_path / "older"))
    (folder / "7" / "metrics" / "metrics").write_text('{"accuracy": 0.25}')
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.by_accuracy() == [6, 7]


def test_what_cannot_be_written_leaves_the_rest_whole(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), 0.5)

        def full(*args, **kwargs):
            (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand pages of it")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints._manager, "save", full)
            with pytest.raises(
                InputError, match=r"/2 cannot be written \(RES.*device\): make room"
            ):
                checkpoints.save(2, state(2))
        assert [path.name for path in tmp_path.iterdir()] == ["1"]
        checkpoints.save(2, state(2))
        assert checkpoints.steps == [1, 2]


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
