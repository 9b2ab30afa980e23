"""Simulation beside other libraries: `python benchmarks/simulation.py` writes results/simulation.

Same weights, same images, same machine.  Every measurement is a process of its own; the systems
take turns, in an order that is reversed from one round to the next; a figure is the median over
rounds.  Of a library that can be run in several ways, a first round finds the fastest.  Needs
benchmarks/requirements.txt.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
RESULTS = ROOT / "results" / "simulation"
# Image shapes.
NETWORKS = {
    "cnet": (28, 28, 1),
    "vgg16": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "mobilenet": (32, 32, 3),
}
BATCHES = (1, 50)
LATENCIES = (32, 100)
OURS = {"tcl_jax": ["jit"], "ann-jax": ["jit"]}
PEERS = {
    "spikingjelly": ["single/nchw", "single/channels_last", "multi/nchw", "multi/channels_last"],
    "sinabs": ["multi/nchw", "multi/channels_last"],
    "snntorch": ["single/nchw", "single/channels_last"],
    "ann-torch": ["ann/nchw", "ann/channels_last"],
}
SYSTEMS = OURS | PEERS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--one", nargs=4, metavar=("SYSTEM", "VARIANT", "NETWORK", "BATCH"))
    options = parser.parse_args()
    if options.one:
        system, variant, network, batch = options.one
        print(json.dumps(_measure(system, variant, network, int(batch))))
        return 0
    from tcl_jax import provenance

    RESULTS.mkdir(parents=True, exist_ok=True)
    record = RESULTS / "simulation.json"
    found = json.loads(record.read_text(encoding="utf-8"))["rows"] if record.exists() else {}
    for network in options.networks:
        for batch in options.batches:
            key = f"{network}/{batch}"
            if key in found:
                continue
            found[key] = _rounds(network, batch, options.systems, options.rounds)
            versions = {p: metadata.version(p) for p in ("torch", *list(PEERS)[:3])}
            content = {**provenance.describe(), "peers": versions, "rows": found}
            record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            _write(json.loads(record.read_text(encoding="utf-8")))
    _write(json.loads(record.read_text(encoding="utf-8")))
    return 0


def _rounds(network: str, batch: int, systems: list[str], rounds: int) -> dict[str, Any]:
    chosen = {}
    for system in systems:
        tried = {v: _apart(system, v, network, batch) for v in SYSTEMS[system]}
        chosen[system] = min(tried, key=lambda v: sum(tried[v]["seconds"].values()))
        shown = {v: [round(s, 4) for s in t["seconds"].values()] for v, t in tried.items()}
        print(network, batch, system, shown, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    for turn in range(rounds):
        for system in systems if turn % 2 else reversed(systems):
            runs[system].append(_apart(system, chosen[system], network, batch))
    return {
        system: {
            "variant": chosen[system],
            "seconds": {
                t: statistics.median(r["seconds"][t] for r in runs[system])
                for t in runs[system][0]["seconds"]
            },
            "all": [r["seconds"] for r in runs[system]],
            "counts": runs[system][0]["counts"],
        }
        for system in systems
    }


def _apart(system: str, variant: str, network: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", system, variant, network, str(batch)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measure(system: str, variant: str, network: str, batch: int) -> dict[str, Any]:
    """Seconds from images to spike counts at every T, or for one ANN forward pass."""
    from tcl_jax import sharding

    sharding.use_cores(batch)
    graph, images = _workload(network, batch)
    if system.startswith("ann"):
        forward = (
            _ann(graph, batch) if system == "ann-jax" else _peer(graph, system, variant, batch)
        )
        return {"seconds": {"forward": _seconds(lambda: forward(images, 1), 10)}, "counts": None}
    run = _ours(graph, batch) if system == "tcl_jax" else _peer(graph, system, variant, batch)
    seconds = {}
    for t in LATENCIES:
        if system == "tcl_jax":
            run(images, t)  # compiles
        else:
            run(images, 2)
        seconds[t] = _seconds(lambda t=t: run(images, t), 3 if batch == 1 else 1)
    counts = run(images, LATENCIES[0])
    return {"seconds": seconds, "counts": np.asarray(counts).astype(int).ravel().tolist()}


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _workload(network: str, batch: int) -> tuple[Any, np.ndarray]:
    """A converted network of random weights, and random images."""
    import jax

    from results.networks import convert_random

    graph, _ = convert_random(network, NETWORKS[network])
    images = np.random.default_rng(1).normal(0, 1, (batch, *NETWORKS[network]))
    return jax.device_get(graph), images.astype(np.float32)


def _peer(graph: Any, library: str, variant: str, batch: int) -> Callable[..., np.ndarray]:
    from peers import runner

    return runner(graph, library, variant, batch)


def _ours(graph: Any, batch: int) -> Callable[..., np.ndarray]:
    import jax

    from tcl_jax import sharding, simulation

    mesh = sharding.data_mesh()
    lowered = sharding.replicate(simulation.lower(graph), mesh)
    simulate = jax.jit(
        lambda graph, x, timesteps: simulation.simulate(graph, x, timesteps).counts,
        static_argnames="timesteps",
    )
    return lambda images, timesteps: np.asarray(
        simulate(lowered, sharding.shard_batch(images, mesh), timesteps=timesteps)
    )


def _ann(graph: Any, batch: int) -> Callable[..., np.ndarray]:
    import jax

    from tcl_jax import conversion, sharding, simulation

    mesh = sharding.data_mesh()
    lowered = sharding.replicate(simulation.lower(graph), mesh)
    forward = jax.jit(conversion.evaluate)
    forward(lowered, sharding.shard_batch(np.zeros((batch, *graph.input.shape), np.float32), mesh))
    return lambda images, _: np.asarray(forward(lowered, sharding.shard_batch(images, mesh)))


def _write(content: dict[str, Any]) -> None:
    from tcl_jax import provenance

    commit = provenance.short(content["commit"])
    peers = list(PEERS)[:3]
    rows = [
        "# Simulation beside other libraries",
        "",
        f"Written by `{content['command']}` (commit {commit}), which says how it "
        "measures; "
        + ", ".join(f"{p} {v}" for p, v in content["peers"].items())
        + f"; {content['hardware']['device']}, {content['hardware']['host_cores']} cores.  "
        "Seconds from images to output spike counts, medians; weights and images random.",
        "",
        "| network | batch | T | tcl_jax | " + " | ".join(peers) + " | fastest peer ÷ tcl_jax "
        "| counts that differ from it |",
        "|---" * (6 + len(peers)) + "|",
    ]
    ratios, steps = [], []
    for key, row in content["rows"].items():
        network, batch = key.split("/")
        for t in map(str, LATENCIES):
            ours = row["tcl_jax"]["seconds"][t]
            theirs = {p: row[p]["seconds"][t] for p in peers}
            best = min(theirs, key=theirs.__getitem__)
            ratios.append(theirs[best] / ours)
            mine = row["tcl_jax"]["counts"]
            differ = sum(a != b for a, b in zip(mine, row[best]["counts"], strict=True))
            rows.append(
                f"| {network} | {batch} | {t} | {ours:.4f} | "
                + " | ".join(f"{theirs[p]:.4f}" for p in peers)
                + f" | {ratios[-1]:.2f} | {differ} of {len(mine)} |"
            )
        step = row["tcl_jax"]["seconds"][str(LATENCIES[-1])] / LATENCIES[-1]
        ann = {a: row[a]["seconds"]["forward"] for a in ("ann-jax", "ann-torch")}
        steps.append(
            f"| {network} | {batch} | {1e3 * step:.3f} | {1e3 * ann['ann-jax']:.3f} "
            f"| {1e3 * ann['ann-torch']:.3f} | {step / min(ann.values()):.2f} |"
        )
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    rows += [
        "",
        f"Fastest peer ÷ tcl_jax: geometric mean {mean:.2f}, least {min(ratios):.2f}.",
        "Spike counts, at T=32, may differ where a membrane potential meets its threshold but for "
        "the last bits, and snnTorch's neurons fire above it, not at it.",
        "",
        "## One step beside one forward pass of the network that it came from",
        "",
        "| network | batch | SNN step, ms | ANN, ms | ANN in PyTorch, ms | step ÷ fastest ANN |",
        "|---" * 6 + "|",
        *steps,
        "",
    ]
    (RESULTS / "README.md").write_text("\n".join(rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
