"""What conversion does to every network: `python -m results.networks` writes results/networks.

Weights, batch statistics and λ are drawn at random, so that nothing is trivial.  At a network's
own image size: time and memory of conversion (trace, fold, calibrate on two images, normalise),
each network in a process of its own.  On small images: how far the converted network's logits are
from the Flax network's, and how the spiking network's converge to them as T grows; and time to
compile its simulation, of one image and of fifty, on one device.  With images of either size: time
to lower the network for a CPU, the first time in a process, and how much larger its weights are
then.  Memory of a process that writes the report of every layer on 100 images of a network's own
size, at T = 1 and 2: more steps take time alone.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from results.pages import table
from tcl_jax import models, provenance, simulation
from tcl_jax.cli.terminal import reported_at_exit
from tcl_jax.conversion import (
    Graph,
    calibrate,
    evaluate,
    fold,
    norm_method,
    normalise,
    trace,
    with_norms,
)
from tcl_jax.report.layers import layer_report

plt.switch_backend("Agg")
ROOT = Path(__file__).resolve().parent.parent
# Side of the images that the network is for, and of small ones; classes.
NETWORKS = {
    "cnet": (32, 32, 10),
    "cnn3": (32, 32, 10),
    "cnn4": (32, 32, 10),
    "resnet20": (32, 16, 10),
    "mobilenet": (32, 16, 10),
    "vgg16": (32, 32, 10),
    "vgg15": (224, 32, 1000),
    "vgg16_imagenet": (224, 32, 1000),
    "resnet34": (224, 32, 1000),
    "resnet50": (224, 32, 1000),
    "mobilenet_imagenet": (224, 32, 1000),
    "inception_v3": (299, 75, 1000),
}
LATENCIES = (125, 250, 500, 1000)
TIMESTEPS, BATCHES = 100, (1, 50)  # of what is compiled
SEED = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", choices=NETWORKS, help="measure this network alone, print JSON")
    parser.add_argument("--what", choices=MEASURES, default="conversion")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(MEASURES[options.what](options.one)))
        return 0
    folder = ROOT / "results" / "networks"
    folder.mkdir(parents=True, exist_ok=True)
    records = folder / "networks.json"
    found = json.loads(records.read_text(encoding="utf-8")) if records.exists() else {}
    about = provenance.describe() | {"seed": SEED}  # before the record changes the tree
    for name in NETWORKS:
        for what in MEASURES:
            settings = provenance.fingerprint(
                what=what, network=(name, *NETWORKS[name]), latencies=LATENCIES, seed=SEED
            )
            record = found.setdefault(name, {}).get(what, {})
            if record.get("settings") != settings:  # not measured yet, or otherwise than today
                print(name, what, flush=True)
                found[name][what] = {**_apart(name, what), "settings": settings, **about}
                records.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    _write({name: found[name] for name in NETWORKS}, folder)
    return 0


def _apart(name: str, what: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "results.networks", "--one", name, "--what", what]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def convert_random(name: str, shape: tuple[int, int, int]) -> tuple[Graph, jax.Array]:
    """A network with random variables, converted on two random images, and these."""
    model, variables, x = _network(name, shape)
    return _convert(model, variables, x), x


def _network(name: str, shape: tuple[int, int, int]) -> tuple[Any, Any, jax.Array]:
    """A network with random variables, and two images."""
    rng = np.random.default_rng(SEED)
    model = models.create(name, image_shape=shape, num_classes=NETWORKS[name][2])
    x = jnp.asarray(rng.normal(0, 1, (2, *shape)), jnp.float32)
    draw: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {
        "kernel": lambda shape: rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape),
        "mean": lambda shape: rng.normal(0, 0.3, shape),
        "var": lambda shape: rng.uniform(0.3, 2.0, shape),
        "scale": lambda shape: rng.uniform(0.5, 1.5, shape),
        "bias": lambda shape: rng.normal(0.1, 0.2, shape),
        "lam": lambda shape: rng.uniform(0.7, 3.0, shape),
    }
    variables = jax.tree_util.tree_map_with_path(
        lambda path, value: jnp.asarray(draw[path[-1].key](value.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0), x),
    )
    return model, variables, x


def _convert(model: Any, variables: Any, x: jax.Array) -> Any:
    folded = fold(trace(lambda x: model.apply(variables, x), x))
    return normalise(with_norms(folded, calibrate(folded, norm_method("tcl"), lambda: [x])))


def _conversion(name: str) -> dict[str, Any]:
    side = NETWORKS[name][0]
    model, variables, x = _network(name, (side, side, 3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    graph = _convert(model, variables, x)
    jax.block_until_ready(graph)
    return {
        "side": side,
        "parameters": sum(v.size for v in jax.tree.leaves(variables["params"])),
        "nodes": len(graph.nodes),
        "neurons": len(graph.neurons),
        "seconds": time.perf_counter() - started,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "peak_gib_before": before / 2**20,
    }


def _convergence(name: str) -> dict[str, Any]:
    side = NETWORKS[name][1]
    model, variables, x = _network(name, (side, side, 3))
    graph = _convert(model, variables, x)
    logits = np.asarray(jax.jit(model.apply)(variables, x))
    largest = np.abs(logits).max()
    return {
        "side": side,
        "logits": float(np.abs(evaluate(graph, x) - logits).max() / largest),
        "snn": {
            t: float(np.abs(mean - logits).max() / largest) for t, mean in _mean_logits(graph, x)
        },
    }


def _lowering(name: str) -> dict[str, Any]:
    found: dict[str, dict[int, float]] = {"seconds": {}, "grown": {}}
    for side in dict.fromkeys(NETWORKS[name][:2]):
        graph, _ = convert_random(name, (side, side, 3))
        jax.block_until_ready(graph)
        started = time.perf_counter()
        lowered = jax.block_until_ready(simulation.lower(graph, "cpu"))
        found["seconds"][side] = time.perf_counter() - started
        before, after = (sum(w.nbytes for w in jax.tree.leaves(g)) for g in (graph, lowered))
        found["grown"][side] = after / before
    return found


def _compiling(name: str) -> dict[str, Any]:
    side = NETWORKS[name][1]
    graph, _ = convert_random(name, (side, side, 3))
    graph = jax.block_until_ready(simulation.lower(graph, "cpu"))

    @jax.jit
    def counts(graph: Graph, x: jax.Array) -> jax.Array:
        found: jax.Array = simulation.simulate(graph, x, TIMESTEPS).output.counts
        return found

    seconds = {}
    for batch in BATCHES:
        started = time.perf_counter()
        counts.lower(graph, jnp.zeros((batch, side, side, 3))).compile()
        seconds[batch] = time.perf_counter() - started
    return {"side": side, "timesteps": TIMESTEPS, "seconds": seconds}


def _report(name: str) -> dict[str, Any]:
    side = NETWORKS[name][0]
    graph, _ = convert_random(name, (side, side, 3))
    jax.block_until_ready(graph)
    images = jnp.asarray(
        np.random.default_rng(SEED).normal(0, 1, (100, side, side, 3)), jnp.float32
    )
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # what was the peak so far
    started = time.perf_counter()
    layers = layer_report(graph, [(images, jnp.ones(100, bool))], timesteps=(1, 2))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "side": side,
        "images": 100,
        "layers": len(layers),
        "seconds": time.perf_counter() - started,
        "peak_gib": int(peak) / 2**20,
    }


MEASURES = {
    "conversion": _conversion,
    "convergence": _convergence,
    "lowering": _lowering,
    "compiling": _compiling,
    "report": _report,
}


def _mean_logits(graph: Any, x: jax.Array) -> Iterator[tuple[int, np.ndarray]]:
    """Mean currents into the output neurons up to some T, as logits."""

    @jax.jit
    def advance(graph: Any, state: Any, constant: Any) -> Any:
        def body(state: Any, _: None) -> tuple[Any, None]:
            return simulation.step(graph, state, constant)[0], None

        return jax.lax.scan(body, state, length=LATENCIES[0])[0]

    state, constant = simulation.init_state(graph, x.shape[0]), simulation.constant_values(graph, x)
    for t in range(LATENCIES[0], LATENCIES[-1] + 1, LATENCIES[0]):
        state = advance(graph, state, constant)
        if t in LATENCIES:
            charge = state.output.membrane + state.output.counts
            yield t, np.asarray(charge * graph.output.op.unit) / t


def _write(found: dict[str, Any], folder: Path) -> None:
    conversion, after, convergence = [], [], []
    for name, entry in found.items():
        a, b = entry["conversion"], entry["convergence"]
        size = (a["side"], f"{a['parameters']:,}", a["neurons"])
        conversion.append((name, *size, f"{a['seconds']:.1f}", f"{a['peak_gib']:.2f}"))
        lower, grown = (max(entry["lowering"][of].values()) for of in ("seconds", "grown"))
        compiled = (f"{s:.1f}" for s in entry["compiling"]["seconds"].values())
        peak = entry["report"]["peak_gib"]
        after.append((name, f"{lower:.2f}", f"{grown:.2f}", *compiled, f"{peak:.2f}"))
        errors = [f"{b['snn'][str(t)]:.4f}" for t in LATENCIES]
        convergence.append((name, b["side"], f"{b['logits']:.1e}", *errors))
    rows = [
        "# Conversion of every network",
        "",
        "Written by `python -m results.networks`, which says how each figure is measured.",
        f"Weights, batch statistics and λ are random (seed {SEED}).",
        "",
        "## Conversion",
        "",
        "For images of the network's own size: layers of neurons, seconds and peak memory.",
        "",
        *table(("network", "image", "parameters", "layers", "seconds", "GiB"), conversion),
        "",
        "## Lowering, compiling, and the report of every layer",
        "",
        "Seconds to lower it for a CPU, and how many times its weights are as large then, the",
        "more of those for either size; seconds to compile the simulation of one small image,",
        f"and of {BATCHES[1]}, for T = {TIMESTEPS}; and the peak of memory, in GiB, of a process",
        "that makes the report of every layer on 100 images of the network's own size.",
        "",
        *table(
            ("network", "lower", "weights", *(f"{b} image{'s' * (b > 1)}" for b in BATCHES), "GiB"),
            after,
        ),
        "",
        "## Convergence",
        "",
        "Errors on small images, relative to the largest logit: of the converted network's logits,",
        "and of the spiking network's at some T.",
        "",
        *table(
            ("network", "image", "logits", *(f"T={t}" for t in LATENCIES)),
            convergence,
        ),
    ]
    rows.append("")
    for what in MEASURES:
        made = {
            (provenance.short(e[what]["commit"]), provenance.machine(e[what]))
            for e in found.values()
        }
        rows += [f"{what.capitalize()} at commit {c}, on {m}.  " for c, m in sorted(made)]
    rows.append("")
    rows += ["![error against latency](convergence.png)", ""]
    (folder / "README.md").write_text("\n".join(rows), encoding="utf-8")

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    colours = plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(found)))
    for (name, entry), colour in zip(found.items(), colours, strict=True):
        errors = entry["convergence"]["snn"].values()
        axes.loglog(LATENCIES, errors, "o-", color=colour, ms=3, label=name)
    guide = 5.0 / np.asarray(LATENCIES)
    axes.loglog(LATENCIES, guide, "k--", linewidth=0.8, label="~ 1/T")
    axes.set_xticks(LATENCIES, [str(t) for t in LATENCIES])
    axes.minorticks_off()
    axes.set(xlabel="latency T (time steps)", ylabel="largest error of a logit, relative")
    axes.set_title("Spiking networks converge to the networks they were made from")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small", ncols=2)
    figure.savefig(folder / "convergence.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    with reported_at_exit():
        sys.exit(main())
