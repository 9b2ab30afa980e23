"""The checkpoints of a run: the newest states, and the best one."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from tcl_jax.errors import InputError, first_line
from tcl_jax.record import free, remove
from tcl_jax.training import checkpoint
from tcl_jax.training.checkpoint import Damaged, Items

_T = TypeVar("_T")


class Checkpoints:
    """The checkpoints of one run, each a folder of the number of its step.

    The two newest are kept, so that there is one to go back to, and of those with an accuracy the
    one where it is highest.  A checkpoint appears whole or not at all; it is written while its
    training goes on.  For ``with``, which ends once all is written.

    Args:
        folder: where they are.  Each process may have this of its own, and only one of them saves.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).absolute()
        # Of one thread, so that one ends before the next begins.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except InputError as error:
            if kind is None:
                raise
            logging.warning("%s", error)  # what ended the training is told first
        finally:
            self._writer.shutdown()

    @property
    def steps(self) -> list[int]:
        """Of all that are there by now, rising."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

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
        return checkpoint.accuracy(self._at(step), step)

    def save(self, step: int, items: Items) -> None:
        """Begin to save a state, once that before it is written.

        Args:
            step: after which it is.
            items: arrays that are whole on this process, whatever devices they lie on; they may
                change as soon as this returns.

        Raises:
            InputError: one of this step or a later one is there, or that before it could not be
                written.
        """
        self.wait()
        if step <= max(self.steps, default=-1):
            raise InputError(f"there is a checkpoint in {self.folder} at step {step}, or after it")
        # Copied: what NumPy sees of an array on a CPU is the array, which a step may overwrite.
        copied = jax.tree.map(np.array, jax.device_get(items))
        self._writing = self._writer.submit(self._write, step, copied)

    def wait(self) -> None:
        """Wait until what is being saved is written.

        Raises:
            InputError: it cannot be.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, items: Items) -> None:
        try:
            checkpoint.write(self._at(step), step, items)
        except Exception as error:  # orbax raises whatever its writers met
            raise InputError(
                f"checkpoint {self._at(step)} cannot be written ({first_line(error)}): "
                "make room or see to its permissions; those before it are whole: resume=True goes "
                "on from there"
            ) from error
        for old in set(self.steps) - {*self.steps[-2:], *self.by_accuracy()[:1]}:
            # Renamed first, for a part of a checkpoint is a damaged one.
            gone = self.folder / f".{old}.old"
            remove(gone)
            self._at(old).rename(gone)
            remove(gone)

    def tidy(self) -> None:
        """Remove what a training that was killed had begun to write, or to remove."""
        for left in (*self.folder.glob(".*.new"), *self.folder.glob(".*.old")):
            remove(left)

    def rate(self, step: int, accuracy: float) -> None:
        """Give a checkpoint its accuracy, or another one, once it is written.

        Raises:
            InputError: it could not be written.
        """
        self.wait()
        checkpoint.rate(self._at(step), step, accuracy)

    def restore(self, step: int, like: Items) -> Items:
        """The arrays saved at a step; see `checkpoint.read`."""
        return checkpoint.read(self._at(step), step, like)

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
        self._at(step).rename(free(self.folder / f"damaged-{step}"))

    def _at(self, step: int) -> Path:
        return self.folder / str(step)
