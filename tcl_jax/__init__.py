"""Train JAX networks with trainable clipping layers, make them spiking ones, simulate those."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcl_jax import conversion as conversion
    from tcl_jax import simulation as simulation
    from tcl_jax.clipping import TCL as TCL
    from tcl_jax.clipping import clip as clip
    from tcl_jax.conversion import convert as convert
    from tcl_jax.conversion import load as load
    from tcl_jax.conversion import save as save
    from tcl_jax.errors import InputError as InputError
    from tcl_jax.graph import Graph as Graph
    from tcl_jax.report.explain import explain as explain
    from tcl_jax.simulation import Simulation as Simulation
    from tcl_jax.simulation import latency_curve as latency_curve
    from tcl_jax.simulation import simulate as simulate

# Where each public name is.  Imported on first use, so that a command can take care of Ctrl-C, and
# of what else may happen, before JAX is imported, which takes a second or more.
_HOME = {
    "TCL": "clipping",
    "clip": "clipping",
    "convert": "conversion",
    "save": "conversion",
    "load": "conversion",
    "InputError": "errors",
    "Graph": "graph",
    "explain": "report.explain",
    "simulate": "simulation",
    "Simulation": "simulation",
    "latency_curve": "simulation",
}
_PACKAGES = ("conversion", "simulation")
__all__ = sorted([*_HOME, *_PACKAGES])


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"tcl_jax.{name}")
    if name in _HOME:
        return getattr(import_module(f"tcl_jax.{_HOME[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("tcl_jax")
    raise AttributeError(f"module 'tcl_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
