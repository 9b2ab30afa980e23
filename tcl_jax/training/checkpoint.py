"""Checkpoints: the best and the last state of a run, with a checksum for every leaf."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from tcl_jax.errors import InputError


class Checkpoints:
    """The checkpoints of one run.

    Each is a pytree of arrays under its step number.  The newest is always kept, and of those
    saved with an accuracy the one where it was highest.  A checkpoint appears whole or not at all.
    Orbax restores flipped bits without complaint, so a CRC-32 of every leaf is kept beside the
    arrays and compared on restore.

    Args:
        folder: where they are; made on the first save.

    Raises:
        InputError: the accuracy of a checkpoint is there and cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder).absolute()
        keep = preservation_policy.AnyPreservationPolicy(
            [
                preservation_policy.LatestN(1),
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["accuracy"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        with _damage_reported(f"a checkpoint in {self.folder}"):
            self._manager = ocp.CheckpointManager(
                self.folder,
                # Named here, for a manager that has saved nothing yet knows no handlers.
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "checksums": ocp.JsonCheckpointHandler(),
                },
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=keep,
                    best_fn=lambda metrics: metrics["accuracy"],
                    enable_async_checkpointing=False,
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        return list(self._manager.all_steps())

    @property
    def last_step(self) -> int | None:
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        with _damage_reported(f"a checkpoint in {self.folder}"):
            return self._manager.best_step()

    def save(self, step: int, state: Any, accuracy: float | None = None) -> None:
        """Save a state; with an accuracy it can become the best."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), checksums=ocp.args.JsonSave(_checksums(state))
            ),
            metrics=None if accuracy is None else {"accuracy": accuracy},
        )

    def restore(self, step: int, like: Any) -> Any:
        """The state saved at `step`.

        Args:
            like: a state (or its shapes) of the tree, shapes and dtypes expected.

        Raises:
            InputError: the checkpoint is of another network, or damaged.
        """
        where = f"checkpoint {self.folder / str(step)}"
        with _damage_reported(where):
            layout = _layout(self._manager.item_metadata(step).state.tree)
        expected = _layout(like)
        if layout != expected:
            odd = sorted(set(layout.items()) ^ set(expected.items()))[0][0]
            raise InputError(
                f"{where} is of another network: at {odd} it holds {layout.get(odd, 'nothing')} "
                f"where {expected.get(odd, 'nothing')} is expected; use the settings it was "
                "trained with"
            )
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _damage_reported(where):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), checksums=ocp.args.JsonRestore()
                ),
            )
            broken = _differing(_checksums(restored.state), restored.checksums)
            if broken:
                raise ValueError(f"checksum of {broken} differs")
        return restored.state


@contextmanager
def _damage_reported(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # orbax raises whatever its readers met
        raise InputError(
            f"{where} is damaged ({_first_line(error)}): delete its folder and resume from "
            "another checkpoint, or train again"
        ) from error


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _layout(tree: Any) -> dict[str, str]:
    return {
        _path(path): f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if hasattr(leaf, "shape")
    }


def _checksums(tree: Any) -> dict[str, int]:
    return {
        _path(path): zlib.crc32(np.ascontiguousarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _differing(a: dict[str, int], b: dict[str, int]) -> str | None:
    return next((k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)), None)


def _first_line(error: BaseException) -> str:
    """What went wrong, short enough for one sentence; TensorStore's messages fill pages."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 120 else line[:117] + "..."
