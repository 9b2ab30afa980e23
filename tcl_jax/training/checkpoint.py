"""One checkpoint on the disk: arrays, and what tells whether they are those that were saved."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from tcl_jax.errors import InputError, first_line
from tcl_jax.record import crc32, remove, write_json
from tcl_jax.storage import of_this_process

Items = dict[str, Any]
"""What a checkpoint holds, by name: pytrees of arrays."""

MODEL = "model"
"""What is tested and converted, parameters and batch statistics, as Flax has them."""
TRAINING = "training"
"""What else a training needs to go on."""

_CONTENTS = "contents.json"
_ACCURACY = "accuracy.json"

# Older versions saved one item, a running mean of the network among the rest, and checksums alone.
_OLDER, _AVERAGE = "state", "average"
_OLDER_CHECKSUMS = Path("checksums", "metadata")
_OLDER_ACCURACY = Path("metrics", "metrics")
_NETWORK = {MODEL, "params", "batch_stats", _AVERAGE}


class Damaged(InputError):
    """A checkpoint whose files are not what was saved."""


def write(folder: Path, step: int, items: Items) -> None:
    """Save arrays in a folder that appears whole or not at all.

    Orbax restores flipped bits without complaint, so the layout and the CRC-32 of every array are
    kept beside them, in a file that has a checksum of its own.

    Args:
        folder: where; it does not exist.
        step: after which they are.
        items: arrays in the host's memory.
    """
    new = folder.with_name(f".{folder.name}.new")
    remove(new)  # of one that was killed
    try:
        new.mkdir(parents=True)
        for name, tree in items.items():
            with ocp.Checkpointer(_handler(), multiprocessing_options=of_this_process()) as orbax:
                orbax.save(new / name, args=ocp.args.PyTreeSave(tree))
        _write_checked(new / _CONTENTS, {"step": step, "arrays": _described(items)})
        rate(new, step, None)
        new.replace(folder)
    finally:
        remove(new)


def rate(folder: Path, step: int, accuracy: float | None) -> None:
    """Give the checkpoint of a step its accuracy; None until it is known."""
    _write_checked(folder / _ACCURACY, {"step": step, "accuracy": accuracy})


def accuracy(folder: Path, step: int) -> float | None:
    """What the checkpoint of a step was given, if anything.

    Raises:
        Damaged: it cannot be read.
    """
    with _damage_reported(folder):
        if not _is_older(folder):
            found: float | None = _checked(folder / _ACCURACY, step)["accuracy"]
            return found
        try:
            content = json.loads((folder / _OLDER_ACCURACY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        older = float(content["accuracy"])
        if content.get("crc32", crc32(older)) != crc32(older):  # still older versions gave none
            raise ValueError("checksum of the accuracy differs")
        return older


def read(folder: Path, step: int, like: Items) -> Items:
    """The arrays of a checkpoint, in the host's memory.

    Args:
        folder: where it is.
        step: after which it was saved.
        like: names, shapes and dtypes expected; items that are not named are not read.

    Raises:
        Damaged: its files are not what was saved.
        InputError: the checkpoint holds other arrays.
    """
    accuracy(folder, step)
    if _is_older(folder):
        return _read_older(folder, like)
    with _damage_reported(folder):
        described: dict[str, Any] = _checked(folder / _CONTENTS, step)["arrays"]
    _check_layout(folder, described, like)
    return {name: _read_item(folder, name, tree, described) for name, tree in like.items()}


def _read_older(folder: Path, like: Items) -> Items:
    """As `read`, of a checkpoint that an older version saved."""
    with _damage_reported(folder):
        layout = {_OLDER: _handler().metadata(folder / _OLDER).tree}
        checksums = json.loads((folder / _OLDER_CHECKSUMS).read_text(encoding="utf-8"))
        described = {
            path: {"layout": _layout(leaf), "crc32": checksums.get(path.removeprefix("state/"))}
            for path, leaf in _leaves(layout)
            if hasattr(leaf, "shape")
        }
        averaged = any(path.startswith(f"{_OLDER}/{_AVERAGE}/") for path in described)
    model = {_AVERAGE: like[MODEL]} if averaged else like[MODEL]
    tree = {**model, **like.get(TRAINING, {})}
    if TRAINING not in like:
        tops = tuple(f"{_OLDER}/{name}/" for name in tree)
        described = {path: leaf for path, leaf in described.items() if path.startswith(tops)}
    _check_layout(folder, described, {_OLDER: tree})
    found = _read_item(folder, _OLDER, tree, described)
    items = {MODEL: found[_AVERAGE] if averaged else {name: found[name] for name in like[MODEL]}}
    if TRAINING in like:
        items[TRAINING] = {name: found[name] for name in like[TRAINING]}
    return items


def _read_item(folder: Path, name: str, tree: Any, described: dict[str, Any]) -> Any:
    arguments = ocp.args.PyTreeRestore(
        tree,
        restore_args=jax.tree.map(
            lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype), tree
        ),
        partial_restore=name == _OLDER,
    )
    with _damage_reported(folder):
        found = _handler().restore(folder / name, args=arguments)
        for path, leaf in _described({name: found}).items():
            if leaf["crc32"] != described[path]["crc32"]:
                raise ValueError(f"checksum of {path} differs")
    return found


def _check_layout(folder: Path, described: dict[str, Any], like: Items) -> None:
    found = {path: leaf["layout"] for path, leaf in described.items() if path.split("/")[0] in like}
    expected = {path: _layout(leaf) for path, leaf in _leaves(like)}
    if found == expected:
        return
    odd = sorted(set(found.items()) ^ set(expected.items()))[0][0]
    what, advice = (
        ("network", "use the settings it was trained with")
        if _NETWORK & set(odd.split("/")[:2])
        else ("version's training", "go on with that version; convert.py reads it all the same")
    )
    here, there = found.get(odd, "nothing"), expected.get(odd, "nothing")
    raise InputError(
        f"checkpoint {folder} is of another {what}: at {odd} it holds {here} where {there} is "
        f"expected; {advice}"
    )


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except Damaged:
        raise
    except Exception as error:  # orbax raises whatever its readers met
        raise Damaged(f"checkpoint {folder} is damaged ({first_line(error)})") from error


def _write_checked(path: Path, content: dict[str, Any]) -> None:
    write_json(path, {"crc32": crc32(content), **content}, indent=1)


def _checked(path: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.pop("crc32", None) != crc32(content):
        raise ValueError(f"checksum of {path.name} differs")
    if content["step"] != step:
        raise ValueError(f"{path.name} is of step {content['step']}")
    return content


def _is_older(folder: Path) -> bool:
    return (folder / _OLDER).is_dir()


def _handler() -> ocp.PyTreeCheckpointHandler:
    return ocp.PyTreeCheckpointHandler(multiprocessing_options=of_this_process())


def _described(items: Items) -> dict[str, dict[str, Any]]:
    return {
        path: {"layout": _layout(leaf), "crc32": crc32(np.asarray(leaf))}
        for path, leaf in _leaves(items)
    }


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    return [(_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _path(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _layout(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
