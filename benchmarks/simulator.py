"""Simulation beside other libraries: `python -m benchmarks.simulator` writes results/simulator.

Same weights, same images, same machine, products accurate to float32. The systems take turns, in an
order that is reversed from one round to the next; a figure is the median over rounds. Of a library
that can be run in several ways, a first round finds the fastest. In float64, where no potential
lies beside its threshold by rounding alone, all must count the same spikes. Then how time and
memory grow with T and with the batch. On a CPU every system has a process of its own; on an
accelerator all share one, which has it to itself. What results/simulator has already is not
measured again. Needs benchmarks/requirements.txt.
"""

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
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
    options = parser.parse_args()
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

    def keep(part: str, key: str, measured: Callable[[], dict[str, Any]]) -> None:
        if key not in record[part]:
            print(part, key, flush=True)
            record[part][key] = {**measured(), "commit": about["commit"]}
            write_json(path, record)
            simulator_page.write(RESULTS)

    for network in options.networks:
        for batch in options.batches:
            with Measurements(network, batch) as of:
                keep("checks", f"{network}/{batch}", lambda of=of: of.checked())
                keep("rows", f"{network}/{batch}", lambda of=of: _rounds(options.rounds, of))
        keep("growth", network, lambda network=network: _growth(network))


class Measurements:
    """Of a workload, one system beside others: on a CPU, each in a process of its own."""

    def __init__(self, network: str, batch: int):
        self._network, self._batch = network, batch
        self._apart = jax.default_backend() == "cpu"
        self._processes: dict[tuple[Any, ...], ProcessPoolExecutor] = {}

    def __enter__(self) -> "Measurements":
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Of all processes; what is measured after it is prepared anew."""
        for process in self._processes.values():
            process.shutdown()
        self._processes.clear()
        _system.cache_clear()

    def __call__(self, system: str, variant: str, *latencies: int) -> dict[str, Any]:
        return self._run(_measured, system, variant, self._network, self._batch, latencies)

    def checked(self) -> dict[str, Any]:
        """That all count the same spikes."""
        found = self._run(_check, self._network, self._batch)
        self.end()
        return found

    def _run(self, function: Callable[..., dict[str, Any]], *key: Any) -> dict[str, Any]:
        if not self._apart:
            return function(*key)
        if key not in self._processes:
            self._processes[key] = ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),
                initializer=cluster.cores_as_devices,
                initargs=(self._batch,),
            )
        return self._processes[key].submit(function, *key).result()


_system = functools.cache(System)


def _measured(*key: Any) -> dict[str, Any]:
    return _system(*key).measure()


def _check(network: str, batch: int) -> dict[str, Any]:
    counts = counts_in_float64(network, batch, LATENCIES[0])
    for system, found in counts.items():
        np.testing.assert_array_equal(found, counts["tcl_jax"], err_msg=f"spikes of {system}")
    return {"systems": list(counts), "neurons": int(counts["tcl_jax"].size)}


def _rounds(rounds: int, measure: Measurements) -> dict[str, Any]:
    chosen = [(system, fastest(measure, system)) for system in SYSTEMS]
    return {
        system: {
            "variant": variant,
            **{what: _medians([run[what] for run in found]) for what in ("seconds", "compile")},
            "all": [run["seconds"] for run in found],
            "memory": found[0]["memory"],
            "resident": found[0]["resident"],
            "counts": found[0]["counts"],
        }
        for (system, variant), found in in_turns(rounds, measure, chosen, *LATENCIES).items()
    }


def fastest(measure: Measurements, system: str) -> str:
    """The way in which a system takes least; its processes are ended."""
    variants = SYSTEMS[system]
    tried = {v: measure(system, v, LATENCIES[0]) for v in variants if len(variants) > 1}
    seconds = {v: sum(t["seconds"].values()) for v, t in tried.items()}
    print(f"  {system}", {v: round(s, 4) for v, s in seconds.items()}, flush=True)
    measure.end()
    return min(seconds, key=seconds.__getitem__) if tried else variants[0]


def in_turns(
    rounds: int, measure: Measurements, systems: list[tuple[str, str]], *latencies: int
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By system and way, what was measured in every round; each other round is backwards."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {system: [] for system in systems}
    for turn in range(rounds):
        for system in systems if turn % 2 else reversed(systems):
            runs[system].append(measure(*system, *latencies))
    return runs


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {t: statistics.median(run[t] for run in runs) for t in runs[0]}


def _growth(network: str) -> dict[str, Any]:
    """Ours, by T of one image, and by batch at the first latency."""

    def ours(batch: int, timesteps: int) -> dict[str, float]:
        with Measurements(network, batch) as measure:
            found = measure("tcl_jax", *SYSTEMS["tcl_jax"], timesteps)
        (seconds,), (memory,) = found["seconds"].values(), found["memory"].values()
        return {"seconds": seconds, "memory": memory, "resident": found["resident"]}

    return {
        "timesteps": {str(t): ours(1, t) for t in LONGER},
        "batch": {str(batch): ours(batch, LATENCIES[0]) for batch in LARGER},
    }


if __name__ == "__main__":
    sys.exit(main())
