"""The spiking network on disk: `graph.json` for its structure, orbax for its arrays."""

import dataclasses
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from tcl_jax.conversion import graph as g
from tcl_jax.errors import InputError

VERSION = 1
GRAPH = "graph.json"
ARRAYS = "arrays"


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A converted network and what is known of its conversion.

    Attributes:
        graph: folded and normalised.
        about: norm method, λ by layer, verification figures, provenance; JSON types only.
    """

    graph: g.SpikingGraph
    about: dict[str, Any]


def save(artifact: Artifact, folder: Path | str) -> None:
    """Write an artifact; one that is there already is replaced only once the new one is whole.

    >>> import tempfile, jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import Artifact, load, save, trace
    >>> graph = trace(lambda x: jax.nn.relu(x @ jnp.eye(2)), jnp.zeros((1, 2)))
    >>> folder = tempfile.mkdtemp()
    >>> save(Artifact(graph, {"norm": "none yet"}), f"{folder}/snn")
    >>> load(f"{folder}/snn").graph.neurons[0].threshold.item()
    inf
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, old = (folder.with_name(folder.name + suffix) for suffix in (".new", ".old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    arrays: dict[str, Any] = {}
    nodes = []
    for index, node in enumerate(artifact.graph.nodes):
        entry: dict[str, Any] = {"kind": type(node).__name__}
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if isinstance(value, jax.Array | np.ndarray):
                key = f"{index}-{field.name}"
                arrays[key] = value
                entry[field.name] = {
                    "array": key,
                    "shape": list(value.shape),
                    "dtype": str(value.dtype),
                    "crc32": zlib.crc32(np.ascontiguousarray(value).tobytes()),
                }
            else:
                entry[field.name] = value
        nodes.append(entry)
    content = {"version": VERSION, "about": artifact.about, "nodes": nodes}
    (new / GRAPH).write_text(json.dumps(content, indent=1) + "\n")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(new / ARRAYS, arrays)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path | str) -> Artifact:
    """Read what `save` wrote.

    Raises:
        InputError: there is no artifact, it was written by a newer version, or it is damaged.
    """
    folder = Path(folder).absolute()
    advice = "convert the run again"
    if not (folder / GRAPH).exists():
        raise InputError(f"there is no spiking network in {folder}: make one with convert.py")
    try:
        content = json.loads((folder / GRAPH).read_text())
        version = content["version"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder / GRAPH} is damaged ({error}): {advice}") from None
    if version != VERSION:
        raise InputError(
            f"{folder} has format {version}, this version reads {VERSION}: {advice} with this one"
        )
    try:
        described = [
            v for n in content["nodes"] for v in n.values() if isinstance(v, dict) and "array" in v
        ]
        like = {d["array"]: jax.ShapeDtypeStruct(d["shape"], d["dtype"]) for d in described}
        with ocp.StandardCheckpointer() as checkpointer:
            arrays = checkpointer.restore(folder / ARRAYS, like)
        for d in described:
            if zlib.crc32(np.ascontiguousarray(arrays[d["array"]]).tobytes()) != d["crc32"]:
                raise ValueError(f"checksum of {d['array']} differs")
        nodes = tuple(_node(entry, arrays) for entry in content["nodes"])
        return Artifact(g.SpikingGraph(nodes), content["about"])
    except Exception as error:  # orbax raises whatever its readers met
        line = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(f"{folder} is damaged ({line}): {advice}") from error


def _node(entry: dict[str, Any], arrays: dict[str, jax.Array]) -> g.Node:
    kind = g.KINDS[entry["kind"]]
    values = {}
    for field in dataclasses.fields(kind):
        value = entry[field.name]
        if isinstance(value, dict):
            value = jnp.asarray(arrays[value["array"]])
        values[field.name] = _tuples(value)
    return kind(**values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
