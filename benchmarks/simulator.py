"""Simulation beside other libraries: `python -m benchmarks.simulator` writes results/simulator.

Same weights, same images, same machine, products accurate to float32. The systems take turns, in an
order that is reversed from one round to the next; a figure is the median over rounds. Of a library
that can be run in several ways, a first round finds the fastest. In float64, where no potential
lies beside its threshold by rounding alone, all must count the same spikes. Then how time and
memory grow with T and with the batch. On a CPU every measurement is a process of its own; on an
accelerator all share one, which has it to itself. What results/simulator has already is not
measured again. Needs benchmarks/requirements.txt.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import simulator_page
from benchmarks.systems import NETWORKS, PEERS, SYSTEMS, System, counts_in_float64
from tcl_jax import cluster, provenance
from tcl_jax.record import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "simulator"
BATCHES = (1, 50)
LATENCIES = (32, 100)
# Of how time and memory grow.
LONGER = (10, 32, 100, 320, 1000)
LARGER = (1, 2, 5, 10, 20, 50, 100)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--report-only", action="store_true", help="write the page again")
    parser.add_argument("--one", nargs="+", metavar="ARGUMENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_one(*options.one)))
        return 0
    if not options.report_only:
        _measure(options)
    simulator_page.write(RESULTS)
    return 0


def _measure(options: argparse.Namespace) -> None:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = provenance.describe()  # before the record changes the tree
    path = RESULTS / f"{jax.default_backend()}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if known and known["hardware"] != about["hardware"]:
        sys.exit(f"{path} is of {provenance.machine(known)}: move it away, and run this again")
    versions = {p: metadata.version(p) for p in ("torch", *PEERS)}
    record = {**about, "peers": versions, "rows": {}, "checks": {}, "growth": {}}
    record |= {part: known[part] for part in ("rows", "checks", "growth") if part in known}
    apart = jax.default_backend() == "cpu"

    def keep(part: str, key: str, measured: Callable[[], dict[str, Any]]) -> None:
        if key not in record[part]:
            print(part, key, flush=True)
            record[part][key] = {**measured(), "commit": about["commit"]}
            write_json(path, record)
            simulator_page.write(RESULTS)

    for network in options.networks:
        for batch in options.batches:
            workload = network, str(batch)
            keep("checks", f"{network}/{batch}", lambda w=workload: _apart("check", *w))
            keep("rows", f"{network}/{batch}", lambda w=workload: _rounds(options.rounds, w, apart))
        keep("growth", network, lambda n=network: _growth(n, apart))


def _one(what: str, *arguments: str) -> dict[str, Any]:
    """A measurement that has this process for itself."""
    if what == "check":
        return _check(*arguments)
    system, variant, network, batch, *latencies = arguments
    cluster.cores_as_devices(int(batch))
    return System(system, variant, network, int(batch), list(map(int, latencies))).measure()


def _check(network: str, batch: str) -> dict[str, Any]:
    counts = counts_in_float64(network, int(batch), LATENCIES[0])
    for system, found in counts.items():
        np.testing.assert_array_equal(found, counts["tcl_jax"], err_msg=f"spikes of {system}")
    return {"systems": list(counts), "neurons": int(counts["tcl_jax"].size)}


def _apart(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.simulator", "--one", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _measurements(workload: Sequence[str], apart: bool) -> Callable[..., dict[str, Any]]:
    """Of a workload: each in a process of its own, or here, each system prepared once."""
    prepared: dict[tuple[str, ...], System] = {}

    def measure(system: str, variant: str, *latencies: int) -> dict[str, Any]:
        if apart:
            return _apart(system, variant, *workload, *map(str, latencies))
        key = (system, variant, *map(str, latencies))
        if key not in prepared:
            network, batch = workload
            prepared[key] = System(system, variant, network, int(batch), latencies)
        return prepared[key].measure()

    return measure


def _rounds(rounds: int, workload: Sequence[str], apart: bool) -> dict[str, Any]:
    measure = _measurements(workload, apart)
    chosen = {}
    for system, variants in SYSTEMS.items():
        tried = {v: measure(system, v, LATENCIES[0]) for v in variants if len(variants) > 1}
        seconds = {v: sum(t["seconds"].values()) for v, t in tried.items()}
        chosen[system] = min(seconds, key=seconds.__getitem__) if tried else variants[0]
        print(f"  {system}", {v: round(s, 4) for v, s in seconds.items()}, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for turn in range(rounds):
        for system in SYSTEMS if turn % 2 else reversed(SYSTEMS):
            runs[system].append(measure(system, chosen[system], *LATENCIES))
    return {
        system: {
            "variant": chosen[system],
            **{what: _medians([run[what] for run in found]) for what in ("seconds", "compile")},
            "all": [run["seconds"] for run in found],
            "memory": found[0]["memory"],
            "resident": statistics.median(run["resident"] for run in found) if apart else None,
            "counts": found[0]["counts"],
        }
        for system, found in runs.items()
    }


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {t: statistics.median(run[t] for run in runs) for t in runs[0]}


def _growth(network: str, apart: bool) -> dict[str, Any]:
    """Ours, by T of one image, and by batch at the first latency."""
    found: dict[str, Any] = {"timesteps": {}, "batch": {}}
    by_one = _measurements((network, "1"), apart)
    for t in LONGER:
        found["timesteps"][str(t)] = _of_growth(by_one("tcl_jax", "jit", t))
    for batch in LARGER:
        measure = _measurements((network, str(batch)), apart)
        found["batch"][str(batch)] = _of_growth(measure("tcl_jax", "jit", LATENCIES[0]))
    return found


def _of_growth(measured: dict[str, Any]) -> dict[str, float]:
    (seconds,), (memory,) = measured["seconds"].values(), measured["memory"].values()
    return {"seconds": seconds, "memory": memory, "resident": measured["resident"]}


if __name__ == "__main__":
    sys.exit(main())
