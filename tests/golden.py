"""Golden spikes: every spike of six networks as they were recorded once, to be the same for ever.

The networks' numbers are dyadic and computed in float64, so that nothing is rounded and any order
of operations gives the same spikes.  `python tests/golden.py` writes the record anew, which is for
a network that is new or has changed, never for a simulator that has.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import toys
from networks import LAM_OUT, Dyadic, images, network

from tcl_jax.conversion import evaluate, fold, load, normalise, trace, with_norms
from tcl_jax.simulation import IF, Poisson, Rate, Simulation, State, run

FOLDER = Path(__file__).parent / "golden"
TIMESTEPS = 24

SIMULATIONS = {
    "chain": (5, Simulation()),
    "residual": (4, Simulation(IF(v0=0.5))),
    "depthwise": (4, Simulation(IF(leak=0.5))),
    "branches": (6, Simulation(IF(reset="zero", floor=0.5))),
    "layouts": (11, Simulation(IF(refractory=1), Rate())),
    "stack": (8, Simulation(IF(v0=0.25), Poisson(), seed=3)),
}
"""By network: the seed of its numbers, one for which all layers are busy, and how it is
simulated."""


SAVED = FOLDER / "saved"
"""Some of these networks as they were once written to disk, never to be written anew."""


def measured(name: str, saved: bool = False) -> dict[str, np.ndarray]:
    """What a network, converted now or then, does with three images: logits, spikes, classes."""
    seed, settings = SIMULATIONS[name]
    with jax.enable_x64(True):
        x = jnp.asarray(images(3))
        if saved:
            graph = load(SAVED / name).graph
        else:
            graph = fold(trace(network(name, Dyadic, seed=seed), x))
            graph = normalise(with_norms(graph, {graph.output.name: LAM_OUT}))

        def observe(state: State, spikes: dict[str, Any], t: jax.Array) -> dict[str, Any]:
            fired = {f"spikes_{i}": spikes[n.name] > 0 for i, n in enumerate(graph.spiking)}
            classes = every.classes(state.output, graph.output.op)
            return fired | {f"by_{how}": classes[how] for how in ("spikes", "membrane")}

        every = toys.Every()
        found = run(graph, x, TIMESTEPS, observe, replace(settings, readout=every))[1]
        return {"logits": np.asarray(evaluate(graph, x)), **jax.tree.map(np.asarray, found)}


def recorded(name: str) -> dict[str, np.ndarray]:
    """What was recorded of a network."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in SIMULATIONS:
        np.savez_compressed(FOLDER / f"{name}.npz", **measured(name))
        print(f"wrote {FOLDER.name}/{name}.npz")
