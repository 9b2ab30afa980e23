"""The spiking network on disk: `graph.json` for its structure, orbax for its arrays."""

import dataclasses
import json
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Float, UInt8

from tcl_jax import graph as g
from tcl_jax.errors import InputError, first_line
from tcl_jax.pixels import standardize
from tcl_jax.promotion import wider
from tcl_jax.record import crc32, remove, write_json
from tcl_jax.storage import of_this_process

VERSION = 3
GRAPH = "graph.json"
ARRAYS = "arrays"
# Seconds after which arrays that nothing names are those of a conversion that was killed.
_LEFT_OVER = 86400.0


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A converted network and what is known of its conversion.

    Attributes:
        graph: folded and normalised.
        about: norm method, λ by layer, standardisation of the images, verification figures, which
            test images the trained network gets right, provenance; JSON types only.
    """

    graph: g.Graph
    about: dict[str, Any]

    def standardize(self, image: UInt8[Array | np.ndarray, "*b h w c"]) -> Float[Array, "*b h w c"]:
        """One's own images, or one of them, as input of the network: as those of the training were.

        Args:
            image: pixels from 0 to 255, in the size that the network takes.

        Raises:
            InputError: they are no such pixels, or the artifact does not know the standardisation.

        >>> import numpy as np, jax.numpy as jnp
        >>> from tcl_jax.conversion import Artifact, trace
        >>> about = {"standardisation": {"mean": [0.5], "std": [0.25]}}
        >>> artifact = Artifact(trace(lambda x: x, jnp.zeros((1, 1, 1, 1))), about)
        >>> artifact.standardize(np.full((1, 1, 1), 255, np.uint8)).item()
        2.0
        """
        if (standardisation := self.about.get("standardisation")) is None:
            raise InputError(
                "this spiking network does not say how its images were standardised: convert the "
                "run again"
            )
        expected = self.graph.input.op.shape
        shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
        if dtype != np.uint8:
            raise InputError(f"an image must be pixels from 0 to 255, as uint8, got {dtype}")
        if shape[-len(expected) :] != expected:
            raise InputError(
                f"the network takes images of shape {expected}, got {shape}: resize or pad them as "
                "those of the training were"
            )
        return standardize(jnp.asarray(image), **standardisation)


def save(artifact: Artifact, folder: Path | str) -> None:
    """Write an artifact; one that is there is replaced in one stroke, once the new one is whole.

    What `graph.json` says, the name of the arrays' folder among it, is the artifact; other files in
    the folder are left alone.

    Raises:
        InputError: it cannot be written, or was lowered for one platform.

    >>> import tempfile, jax, jax.numpy as jnp
    >>> from tcl_jax.conversion import Artifact, load, save, trace
    >>> graph = trace(lambda x: jax.nn.relu(x @ jnp.eye(2)), jnp.zeros((1, 2)))
    >>> folder = tempfile.mkdtemp()
    >>> save(Artifact(graph, {"norm": "none yet"}), f"{folder}/snn")
    >>> load(f"{folder}/snn").graph.neurons[0].op.threshold.item()
    inf
    """
    folder = Path(folder).absolute()
    arrays: dict[str, Any] = {}
    for node in artifact.graph.nodes:
        if g.KINDS.get(type(node.op).__name__) is not type(node.op):
            raise InputError(
                f"node {node.name!r} is a {type(node.op).__name__}, a form for one platform that "
                "files do not have: save the graph as it was before it was lowered"
            )
    names = [node.name for node in artifact.graph.nodes]
    nodes = [_entry(i, node, names, arrays) for i, node in enumerate(artifact.graph.nodes)]
    place = folder / f"{ARRAYS}-{secrets.token_hex(4)}"
    content = {"about": artifact.about, "arrays": place.name, "nodes": nodes}
    content = json.loads(json.dumps(content))  # as it will be read: keys become text
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ocp.StandardCheckpointer(multiprocessing_options=of_this_process()) as checkpointer:
            checkpointer.save(place, jax.device_get(arrays))
        old = _unneeded(folder)
        described = {"version": VERSION, "crc32": crc32(content), **content}
        write_json(folder / GRAPH, described, indent=1)
    except BaseException as error:
        for unfinished in folder.glob(f"{place.name}*"):
            remove(unfinished)
        if isinstance(error, Exception):  # orbax raises whatever its writers met
            raise InputError(
                f"the spiking network cannot be written to {folder} ({first_line(error)}): make "
                "room or see to its permissions; one that was there is as it was"
            ) from error
        raise
    for path in old:
        shutil.rmtree(path, ignore_errors=True)


def _unneeded(folder: Path) -> list[Path]:
    """Arrays of the network that is there, and of conversions killed a day ago or more.

    Not others: another process may be writing them.
    """
    now = time.time()
    found = [p for p in folder.glob(f"{ARRAYS}-*") if now - p.stat().st_mtime > _LEFT_OVER]
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads((folder / GRAPH).read_bytes())
        name = ARRAYS if content["version"] == 1 else content["arrays"]
        if name.startswith(ARRAYS) and Path(name).name == name:  # whatever a damaged file says
            found.append(folder / name)
    return found


def is_place(folder: Path) -> bool:
    """Whether an artifact can be written there: nothing is, or an artifact, or part of one."""
    if not folder.exists() or (folder / GRAPH).exists():
        return True
    return folder.is_dir() and all(
        path.name.startswith((f"{ARRAYS}-", f".{GRAPH}")) for path in folder.iterdir()
    )


def fingerprint(folder: Path) -> str | None:
    """Of the network that is there, the same for the same structure and arrays."""
    try:
        text = (folder / GRAPH).read_bytes()
    except OSError:
        return None
    with suppress(ValueError, KeyError, TypeError):
        return f"{crc32(json.loads(text)['nodes']):08x}"
    return f"{crc32(text):08x}"


def load(folder: Path | str) -> Artifact:
    """Read what `save` wrote.

    Raises:
        InputError: there is no artifact, it was written by a newer version, or it is damaged; or it
            is of 64 bits, and JAX is set to 32.
    """
    folder = Path(folder).absolute()
    advice = "convert the run again"
    try:
        text = (folder / GRAPH).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"there is no spiking network in {folder}: make one with convert.py"
        ) from None
    try:
        content = json.loads(text)
        version, checksum = content.pop("version"), content.pop("crc32", None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / GRAPH} is damaged ({error}): {advice}") from None
    if version not in (1, 2, VERSION):
        raise InputError(
            f"{folder} has format {version}, this version reads up to {VERSION}: {advice} with it"
        )
    if version == 1 and checksum is None:
        # The first format had no checksum of the structure, and one name for all arrays.
        content = {"arrays": ARRAYS, **content}
    elif checksum != crc32(content):
        raise InputError(f"{folder / GRAPH} is damaged (its checksum differs): {advice}")
    try:
        return _read(folder, content, version)
    except InputError:
        raise
    except Exception as error:  # orbax raises whatever its readers met
        if (folder / GRAPH).read_bytes() != text:
            return load(folder)  # replaced meanwhile, and its arrays gone
        raise InputError(f"{folder} is damaged ({first_line(error)}): {advice}") from error


def _entry(number: int, node: g.Node[g.Kind], names: list[str], arrays: Any) -> dict[str, Any]:
    """A node as JSON; its arrays are put where they are named."""
    entry: dict[str, Any] = {
        "kind": type(node.op).__name__,
        "name": node.name,
        "inputs": [names[i] for i in node.inputs],
    }
    for field in dataclasses.fields(node.op):
        value = getattr(node.op, field.name)
        if isinstance(value, jax.Array | np.ndarray):
            key = f"{number}-{field.name}"
            arrays[key] = value
            entry[field.name] = {
                "array": key,
                "shape": list(value.shape),
                "dtype": str(value.dtype),
                "crc32": crc32(np.asarray(value)),
            }
        else:
            entry[field.name] = value
    return entry


def _read(folder: Path, content: dict[str, Any], version: int) -> Artifact:
    described = [
        v for n in content["nodes"] for v in n.values() if isinstance(v, dict) and "array" in v
    ]
    # To the host: the devices that they were saved from may be on another machine.
    like = {d["array"]: np.empty(d["shape"], jnp.dtype(d["dtype"])) for d in described}
    with ocp.StandardCheckpointer(multiprocessing_options=of_this_process()) as checkpointer:
        arrays = checkpointer.restore(folder / content["arrays"], like)
    for d in described:
        if crc32(np.asarray(arrays[d["array"]])) != d["crc32"]:
            raise ValueError(f"checksum of {d['array']} differs")
    here = jax.device_put(arrays)  # which compiles nothing, as jnp.asarray does for every shape
    for d in described:
        if here[d["array"]].dtype != d["dtype"]:
            raise InputError(
                f"{folder} holds {d['dtype']}, of which JAX would make {here[d['array']].dtype}: "
                "set JAX_ENABLE_X64=1"
            )
    entries = content["nodes"]
    if version < 3:
        entries = [_of_format_3(entry, content["about"], here) for entry in entries]
    numbers = {entry["name"]: number for number, entry in enumerate(entries)}
    nodes = tuple(_node(entry, numbers, here) for entry in entries)
    return Artifact(g.Graph(nodes), content["about"])


def _of_format_3(
    entry: dict[str, Any], about: dict[str, Any], arrays: dict[str, jax.Array]
) -> dict[str, Any]:
    """An entry of an earlier format, in which neurons were a threshold, and outputs had a scale.

    The clip, of which nothing was written down, is then what the neurons can carry, as with ``tcl``
    it is; what a value of 1 stands for is NaN where that was not said either.
    """
    if entry["kind"] == "Output":
        return entry | {"unit": entry["scale"]}
    if entry["kind"] != "Neuron":
        return entry
    key, threshold = f"{entry['name']}-unit", arrays[entry["threshold"]["array"]]
    said = about.get("lambda", {}).get(entry["name"], jnp.nan)
    arrays[key] = jnp.asarray(said, wider(threshold.dtype, jnp.float32))
    return entry | {"kind": "Population", "clip": entry["threshold"], "unit": {"array": key}}


def _node(
    entry: dict[str, Any], numbers: dict[str, int], arrays: dict[str, jax.Array]
) -> g.Node[g.Kind]:
    kind = g.KINDS[entry["kind"]]
    values = {}
    for field in dataclasses.fields(kind):
        value = entry[field.name]
        if isinstance(value, dict):
            value = arrays[value["array"]]
        values[field.name] = _tuples(value)
    return g.Node(kind(**values), tuple(numbers[name] for name in entry["inputs"]), entry["name"])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
