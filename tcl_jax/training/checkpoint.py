"""Checkpoints: the newest states of a run and the best one, with a checksum for every leaf."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from tcl_jax.errors import InputError, first_line
from tcl_jax.record import crc32, free, remove, write_json
from tcl_jax.storage import of_this_process

_T = TypeVar("_T")
VARIABLES = ("params", "batch_stats")
"""What a network is, of all that a training state holds."""

AVERAGE = "average"
"""The running mean of them, where a training keeps one."""

# Where orbax's own managers put accuracies, and older versions of ours.
_METRICS = Path("metrics", "metrics")


class Damaged(InputError):
    """A checkpoint whose files are not what was saved."""


class Checkpoints:
    """The checkpoints of one run.

    Each is a pytree of arrays under its step number.  The two newest are kept, so that there is one
    to go back to, and of those with an accuracy the one where it is highest.  A checkpoint appears
    whole or not at all.  Orbax restores flipped bits without complaint, so a CRC-32 of every leaf
    is kept beside the arrays and compared on restore.

    Args:
        folder: where they are.  Each process may have this of its own, and only one of them saves.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).absolute()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        alone = of_this_process()
        self.folder.mkdir(parents=True, exist_ok=True)
        return ocp.CheckpointManager(
            self.folder,
            # Named here, for a manager that has saved nothing yet knows no handlers.
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(multiprocessing_options=alone),
                "checksums": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
            options=ocp.CheckpointManagerOptions(
                create=False,
                multiprocessing_options=alone,
                enable_async_checkpointing=False,
                # It would read all metrics, and raise where those of one cannot be read.
                lightweight_initialize=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Of all that are there, rising."""
        return sorted(self._manager.all_steps())

    @property
    def last_step(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        return next(iter(self.by_accuracy()), None)

    def by_accuracy(self) -> list[int]:
        """Steps of those that have one, from the highest; of equals, the newest first."""
        found = {}
        for step in reversed(self.steps):
            try:
                accuracy = self.accuracy(step)
            except Damaged as error:
                logging.warning("%s: it is not taken for the best", error)
            else:
                if accuracy is not None:
                    found[step] = accuracy
        return sorted(found, key=lambda step: -found[step])

    def accuracy(self, step: int) -> float | None:
        """What a checkpoint was given, if anything.

        Raises:
            Damaged: it cannot be read.
        """
        path = self.folder / str(step) / _METRICS
        with self._damage_reported(step):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            found = float(content["accuracy"])
            if content.get("crc32", crc32(found)) != crc32(found):  # older versions gave none
                raise ValueError("checksum of the accuracy differs")
            return found

    def save(self, step: int, state: Any, accuracy: float | None = None) -> None:
        """Save a state; with an accuracy it can become the best.

        Args:
            step: after which it is.
            state: arrays that are whole on this process, whatever devices they lie on.
            accuracy: on test images.

        Raises:
            InputError: it cannot be written, or one of this step or a later one is there.
        """
        state = jax.device_get(state)
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    checksums=ocp.args.JsonSave(_checksums(state)),
                ),
            )
        except Exception as error:  # orbax raises whatever its writers met
            for unfinished in self.folder.glob(f"{step}.*tmp*"):
                remove(unfinished)
            raise InputError(
                f"checkpoint {self.folder / str(step)} cannot be written ({first_line(error)}): "
                "make room or see to its permissions; those before it are whole: resume=True goes "
                "on from there"
            ) from error
        if not saved:
            raise InputError(f"there is a checkpoint in {self.folder} at step {step}, or after it")
        if accuracy is not None:
            self.rate(step, accuracy)
        kept = {*self.steps[-2:], self.best_step}
        for old in set(self.steps) - kept:
            self._manager.delete(old)

    def rate(self, step: int, accuracy: float) -> None:
        """Give a checkpoint its accuracy, or another one."""
        path = self.folder / str(step) / _METRICS
        path.parent.mkdir(exist_ok=True)
        write_json(path, {"accuracy": accuracy, "crc32": crc32(float(accuracy))}, indent=None)

    def restore(self, step: int, like: dict[str, Any], *, parts: bool = False) -> dict[str, Any]:
        """The state saved at `step`.

        Args:
            step: which.
            like: of the names, shapes and dtypes expected.
            parts: where the checkpoint has more than `like`, at the top, leave that unread.

        Raises:
            Damaged: its files are not what was saved.
            InputError: the checkpoint holds another state.
        """
        with self._damage_reported(step):
            self.accuracy(step)
            found = _layout(self._manager.item_metadata(step).state.tree)
        if parts:
            found = {path: leaf for path, leaf in found.items() if _top(path) in like}
        self._check_layout(step, found, _layout(like))
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with self._damage_reported(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        abstract,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                        partial_restore=parts,
                    ),
                    checksums=ocp.args.JsonRestore(),
                ),
            )
            saved = {p: c for p, c in restored.checksums.items() if not parts or _top(p) in like}
            broken = _differing(_checksums(restored.state), saved)
            if broken:
                raise ValueError(f"checksum of {broken} differs")
        state: dict[str, Any] = restored.state
        return state

    def _check_layout(self, step: int, found: dict[str, str], expected: dict[str, str]) -> None:
        if found == expected:
            return
        odd = sorted(set(found.items()) ^ set(expected.items()))[0][0]
        what, advice = (
            ("network", "use the settings it was trained with")
            if _top(odd) in (*VARIABLES, AVERAGE)
            else ("version's training", "go on with that version; convert.py reads it all the same")
        )
        here, there = found.get(odd, "nothing"), expected.get(odd, "nothing")
        raise InputError(
            f"checkpoint {self.folder / str(step)} is of another {what}: at {odd} it holds {here} "
            f"where {there} is expected; {advice}"
        )

    def first_intact(
        self, steps: Iterable[int], read: Callable[[int], _T]
    ) -> tuple[int, _T, list[int]]:
        """What is read of the first of some checkpoints that is not damaged.

        Args:
            steps: in the order to try them.
            read: takes a step.

        Returns:
            The step, what was read, and the steps before it, which are damaged.

        Raises:
            InputError: all are damaged.
        """
        damaged: dict[int, Damaged] = {}
        for step in steps:
            try:
                found = read(step)
            except Damaged as error:
                damaged[step] = error
                continue
            for why in damaged.values():
                logging.warning("%s: the one of step %d is read in its place", why, step)
            return step, found, list(damaged)
        raise InputError(
            f"{'; '.join(map(str, damaged.values()))}: restore it from a copy, or else convert "
            "another checkpoint, or train again"
        )

    def set_aside(self, step: int) -> None:
        """Rename a checkpoint so that it is none, and another can be saved at its step."""
        (self.folder / str(step)).rename(free(self.folder / f"damaged-{step}"))
        self._manager.close()
        self._manager = self._open()

    @contextmanager
    def _damage_reported(self, step: int) -> Iterator[None]:
        try:
            yield
        except Damaged:
            raise
        except Exception as error:  # orbax raises whatever its readers met
            raise Damaged(
                f"checkpoint {self.folder / str(step)} is damaged ({first_line(error)})"
            ) from error


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _top(path: str) -> str:
    return path.split("/")[0]


def _layout(tree: Any) -> dict[str, str]:
    return {
        _path(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _checksums(tree: Any) -> dict[str, int]:
    return {
        _path(path): crc32(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _differing(a: dict[str, int], b: dict[str, int]) -> str | None:
    return next((k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)), None)
