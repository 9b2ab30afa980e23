"""Checkpoints: which are kept, and that damage is never restored."""

import json
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tcl_jax.errors import InputError
from tcl_jax.record import crc32
from tcl_jax.training import Checkpoints, checkpoint
from tcl_jax.training.checkpoint import MODEL, TRAINING, Damaged, Items


def params(seed: int) -> dict:
    kernel = jax.random.normal(jax.random.key(seed), (3, 3, 8, 16))
    return {"conv": {"kernel": kernel}, "lam": jnp.ones(())}


def state(seed: int = 0) -> Items:
    momentum = optax.sgd(0.1, momentum=0.9).init(params(seed + 100))
    return {
        MODEL: {"params": params(seed), "batch_stats": {}},
        TRAINING: {"step": jnp.asarray(seed, jnp.int32), "opt_state": momentum},
    }


def same(a: Items, b: Items) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def save(checkpoints: Checkpoints, step: int, accuracy: float | None = None) -> None:
    """Save, and wait until it is written; as in training, what is kept was known before."""
    checkpoints.save(step, state(step))
    checkpoints.wait()
    if accuracy is not None:
        checkpoints.rate(step, accuracy)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "saved"
    with Checkpoints(folder) as checkpoints:
        save(checkpoints, 6, 0.3)
        save(checkpoints, 7, 0.5)
    return folder


def restore(folder: Path, step: int, like: Items | None = None) -> Items:
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(step, like or state())


def test_a_state_comes_back_bit_for_bit(saved):
    found = restore(saved, 7)
    assert same(found, state(7))
    assert jax.tree.structure(found) == jax.tree.structure(state(7))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found))


def test_the_two_newest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6, 0.8], start=1):
            save(checkpoints, step, accuracy)
        assert checkpoints.steps == [2, 4, 5]
        assert checkpoints.by_accuracy() == [2, 5, 4]
    assert same(restore(tmp_path, 2), state(2))


def test_an_accuracy_is_given_afterwards(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
        save(checkpoints, 2)
        assert (checkpoints.accuracy(2), checkpoints.by_accuracy()) == (None, [1])
        checkpoints.rate(2, 0.7)
        assert (checkpoints.accuracy(2), checkpoints.by_accuracy()) == (0.7, [2, 1])
        checkpoints.rate(2, 0.5)
        assert checkpoints.by_accuracy() == [2, 1]  # of equals, the newest first


def test_no_step_is_saved_twice(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 2)
        for step in (1, 2):
            with pytest.raises(InputError, match=f"at step {step}, or after it"):
                checkpoints.save(step, state(9))
    assert same(restore(tmp_path, 2), state(2))


def test_a_resumed_run_keeps_the_best_from_before(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.9)
        save(checkpoints, 2, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.by_accuracy() == [1, 2]
        save(checkpoints, 3, 0.6)
        assert checkpoints.steps == [1, 2, 3]
        save(checkpoints, 4, 0.95)
        assert checkpoints.steps == [1, 3, 4]
        save(checkpoints, 5)
        assert checkpoints.steps == [4, 5]


def test_an_interruption_has_no_accuracy_and_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        assert checkpoints.by_accuracy() == []
        save(checkpoints, 2, 0.5)
        save(checkpoints, 3)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.by_accuracy(), checkpoints.steps) == ([2], [2, 3])


def test_a_folder_without_checkpoints(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.steps == [] == checkpoints.by_accuracy()
    assert not (tmp_path / "none").exists()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """What is saved is what was given, whatever becomes of the arrays; one after another."""
    may, written = threading.Event(), []
    write = checkpoint.write

    def slow(folder: Path, step: int, items: Items) -> None:
        assert may.wait(10)
        write(folder, step, items)
        written.append(step)

    monkeypatch.setattr(checkpoint, "write", slow)
    given = jax.tree.map(np.array, state(1))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, given)
        given[MODEL]["params"]["conv"]["kernel"][:] = 0
        assert checkpoints.steps == [] and not written
        may.set()
        checkpoints.save(2, state(2))
        assert checkpoints.steps[0] == 1 == written[0]
    assert written == [1, 2]
    assert same(restore(tmp_path, 1), state(1)) and same(restore(tmp_path, 2), state(2))


def test_what_was_killed_is_tidied_up(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1)
        for left in (".2.new/model", ".0.old/model"):
            (tmp_path / left).mkdir(parents=True)
        assert checkpoints.steps == [1]
        checkpoints.tidy()
        assert [path.name for path in tmp_path.iterdir()] == ["1"]


def without(path: str) -> Items:
    """A state that has nothing at a path."""
    item, *keys, last = path.split("/")
    found = state()
    holds = found[item]
    for key in keys:
        holds = holds[key]
    del holds[last]
    return found


CHANGED = {
    "shape": (
        {MODEL: {"params": {"conv": {"kernel": jnp.ones((3, 3, 8, 4))}, "lam": jnp.ones(())}}},
        "network",
        "at model/params/conv/kernel it holds float32[3, 3, 8, 16] where float32[3, 3, 8, 4]",
    ),
    "missing": (
        without("model/params/lam"),
        "network",
        "at model/params/lam it holds float32[] where nothing",
    ),
    "dtype": (
        {TRAINING: state()[TRAINING] | {"step": jnp.zeros((), jnp.float32)}},
        "version's training",
        "at training/step it holds int32[] where float32[]",
    ),
    "additional": (
        {TRAINING: state()[TRAINING] | {"noise": jnp.ones(2)}},
        "version's training",
        "at training/noise it holds nothing where float32[2]",
    ),
}


@pytest.mark.parametrize("how", CHANGED)
def test_another_state_is_refused(saved, how):
    changed, of, words = CHANGED[how]
    with pytest.raises(InputError, match=f"is of another {of}: ") as refused:
        restore(saved, 7, state() | changed)
    assert not isinstance(refused.value, Damaged)
    assert words in str(refused.value)


def test_the_network_is_read_whatever_trains_it(saved, tmp_path):
    """Of the rest, nothing is read; its damage is nothing to those who want the network."""
    folder = Path(shutil.copytree(saved, tmp_path / "damaged"))
    shutil.rmtree(folder / "7" / TRAINING)
    wanted = {MODEL: state()[MODEL]}
    assert same(restore(folder, 7, wanted), {MODEL: state(7)[MODEL]})
    with pytest.raises(Damaged):
        restore(folder, 7)


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
                [7, 6], lambda step: checkpoints.restore(step, state())
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
                save(checkpoints, 7, 0.6)
                assert same(checkpoints.restore(7, state()), state(7)), name
                assert (folder / "damaged-7").is_dir()
        shutil.rmtree(folder)
    for item in (MODEL, TRAINING):
        assert any(name.startswith(f"7/{item}/") for name in passed_over)
    assert {"7/contents.json", "7/accuracy.json"} <= set(passed_over)


def test_a_flipped_accuracy_is_none(saved, tmp_path, caplog):
    folder = Path(shutil.copytree(saved, tmp_path / "flipped"))
    path = folder / "6" / "accuracy.json"
    path.write_text(path.read_text().replace("0.3", "0.7"))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.by_accuracy() == [7]
        assert "checksum of accuracy.json differs): it is not taken for the best" in caplog.text
        with pytest.raises(Damaged):
            checkpoints.restore(6, state())


def test_a_checkpoint_of_another_step_is_none(saved, tmp_path):
    for name in ("accuracy.json", "contents.json"):
        folder = Path(shutil.copytree(saved, tmp_path / name))
        shutil.copy(folder / "6" / name, folder / "7" / name)
        with pytest.raises(Damaged, match=rf"/7 is damaged \({name} is of step 6\)"):
            restore(folder, 7)


def test_nothing_intact_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
            _flip(tmp_path / str(step) / "contents.json")
        with pytest.raises(InputError, match=r"/2 is damaged .*/1 is damaged .*from a copy"):
            checkpoints.first_intact([2, 1], lambda step: checkpoints.restore(step, state()))


def test_what_cannot_be_written_leaves_the_rest_whole(tmp_path, monkeypatch):
    def full(path: Path, *_: object, **__: object) -> None:
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device\nand pages of it")

    with Checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, 0.5)
        for told in (checkpoints.wait, lambda: checkpoints.save(3, state(3))):
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "write_json", full)
                checkpoints.save(2, state(2))
                with pytest.raises(
                    InputError, match=r"/2 cannot be written \(RES.*device\): make room"
                ):
                    told()
            assert [path.name for path in tmp_path.iterdir()] == ["1"]
        save(checkpoints, 2)
        assert checkpoints.steps == [1, 2]


def test_who_leaves_hears_of_what_was_not_written(tmp_path, monkeypatch, caplog):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "write", full)
    with pytest.raises(InputError, match="/1 cannot be written"), Checkpoints(tmp_path) as left:
        left.save(1, state(1))
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path) as left:
        left.save(1, state(1))
        raise ZeroDivisionError
    assert "/1 cannot be written (No space left on device)" in caplog.text


def test_flipped_bits_that_orbax_restores_are_found(saved, monkeypatch):
    """The checksum alone: what is read differs from what was saved in one bit."""
    found = ocp.PyTreeCheckpointHandler.restore

    def altered(*args, **kwargs):
        restored = found(*args, **kwargs)
        if "params" in restored:
            restored["params"]["conv"]["kernel"].view(np.uint32).flat[100] ^= 1
        return restored

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", altered)
    with pytest.raises(Damaged, match="checksum of model/params/conv/kernel differs"):
        restore(saved, 7)


def older(folder: Path, step: int, items: Items, average: bool) -> Items:
    """Save as versions before did, by a manager of orbax; returns what today's is to be."""
    model, training = items[MODEL], items[TRAINING]
    if average:
        training = training | {"params": params(step + 50), "batch_stats": {}}
    tree = training | ({"average": model} if average else model)
    sums = {
        "/".join(
            str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", None)))) for k in path
        ): crc32(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    with ocp.CheckpointManager(folder, item_names=("state", "checksums")) as manager:
        args = {"state": ocp.args.PyTreeSave(tree), "checksums": ocp.args.JsonSave(sums)}
        manager.save(step, args=ocp.args.Composite(**args))
    return {MODEL: model, TRAINING: training}


@pytest.mark.parametrize("average", [False, True])
def test_checkpoints_of_older_versions(tmp_path, average, caplog):
    expected = {step: older(tmp_path, step, state(step), average) for step in (6, 7)}
    for step, accuracy in ((6, {"accuracy": 0.5, "crc32": crc32(0.5)}), (7, {"accuracy": 0.25})):
        (tmp_path / str(step) / "metrics").mkdir()
        (tmp_path / str(step) / "metrics" / "metrics").write_text(json.dumps(accuracy))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.by_accuracy() == [6, 7]
        assert same(checkpoints.restore(7, expected[6]), expected[7])
        wanted = {MODEL: expected[6][MODEL]}
        assert same(checkpoints.restore(7, wanted), {MODEL: expected[7][MODEL]})
        for changed, of, _ in CHANGED.values():
            if average and TRAINING in changed:
                continue  # where the network that is trained is, too
            with pytest.raises(InputError, match=f"is of another {of}: "):
                checkpoints.restore(7, expected[6] | changed)
        save(checkpoints, 8)
        assert checkpoints.steps == [6, 7, 8]
        for path in ("metrics/metrics", "checksums/metadata", "state/manifest.ocdbt"):
            file = tmp_path / "7" / path
            content = file.read_bytes()
            _truncate(file)
            with pytest.raises(Damaged):
                checkpoints.restore(7, wanted)
            file.write_bytes(content)
        assert same(checkpoints.restore(7, wanted), {MODEL: expected[7][MODEL]})
    # Of what orbax had begun to read asyncio may complain whenever garbage is collected.
    assert not [record for record in caplog.records if record.name == "root"]
