"""Who may import whom: the package is a house of floors, and imports only run down.

A room is a module or a folder of them, as ``graph`` or ``training``; it imports what lies on the
floors below its own, and itself.
"""

import ast
import re
from pathlib import Path

import tcl_jax
from tcl_jax.graph import KINDS

PACKAGE = Path(tcl_jax.__file__).parent
REPOSITORY = PACKAGE.parent

FLOORS = (
    "errors pytrees",
    "letters programs promotion provenance record registry storage",
    "clipping cluster pixels progress",
    "data graph models topology",
    "roofline simulation tracing",
    "calibration exchange",
    "conversion report training",
    "runs",
    "cli",
)
"""From the ground up.  The package itself, which only gives names out, and what `python -m tcl_jax`
runs stand on the roof."""

LIBRARIES = {
    "flax": "clipping models runs training",
    "matplotlib": "report runs",
    "optax": "training",
    "orbax": "graph storage training",
    "rich": "cli progress report runs",
    "sklearn": "data",
    "tensorflow_datasets": "data",
}
"""Large or slow libraries, and the only rooms that may use them."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
FLOOR[""] = FLOOR["__main__"] = len(FLOORS)


def _name(path: Path) -> str:
    """A module's dotted name within the package; the package's own is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _room(module: str) -> str:
    return module.split(".")[0]


def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _imports(module: str) -> set[str]:
    """Full names of all that a module imports, within functions too."""
    found: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports here name the whole path"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _kinds_told_apart(node: ast.AST) -> set[str]:
    """Names of the classes that a pattern or an `isinstance` asks for."""
    match node:
        case ast.MatchClass(cls=asked):
            pass
        case ast.Call(func=ast.Name(id="isinstance"), args=[_, asked]):
            pass
        case _:
            return set()
    parts = list(ast.walk(asked))
    return {n.id for n in parts if isinstance(n, ast.Name)} | {
        n.attr for n in parts if isinstance(n, ast.Attribute)
    }


def _within(name: str) -> str | None:
    """The module of this package that an imported name is, or is in."""
    if name.split(".")[0] != PACKAGE.name:
        return None
    inner = name.partition(".")[2]
    return inner if inner in MODULES else inner.rpartition(".")[0]


def _runs_down(module: str, other: str) -> bool:
    here, there = _room(module), _room(other)
    return here == there or FLOOR[there] < FLOOR[here]


def test_imports_run_down():
    up = {
        (module, other)
        for module in MODULES
        for name in _imports(module)
        if (other := _within(name)) is not None and not _runs_down(module, other)
    }
    assert not up


def test_the_picture_of_the_floors_is_true():
    page = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = re.findall(r"^ (\d)  (.+)$", page, re.MULTILINE)
    assert [int(number) for number, _ in drawn] == list(range(len(FLOORS), 0, -1))
    assert [rooms.split() for _, rooms in reversed(drawn)] == [f.split() for f in FLOORS]


def test_libraries_stay_in_their_rooms():
    astray = {
        (module, library)
        for module in MODULES
        for library in {name.split(".")[0] for name in _imports(module)} & LIBRARIES.keys()
        if _room(module) not in LIBRARIES[library].split()
    }
    assert not astray


def test_no_module_asks_what_an_operation_is():
    operations = KINDS.keys() - {"Input", "Population", "Output"}
    asked = {
        module
        for module in MODULES
        if any("tcl_jax.graph" in name for name in _imports(module) | {module})
        for node in ast.walk(_tree(module))
        if operations & _kinds_told_apart(node)
    }
    assert not asked


def test_every_module_has_a_room():
    assert {_room(name) for name in MODULES} <= FLOOR.keys()


def test_files_are_short():
    folders = (PACKAGE, *(REPOSITORY / name for name in ("tests", "benchmarks", "results")))
    lines = {
        path.relative_to(REPOSITORY): len(path.read_text(encoding="utf-8").splitlines())
        for folder in folders
        for path in folder.rglob("*.py")
    }
    assert not {path: count for path, count in lines.items() if count > 400}
