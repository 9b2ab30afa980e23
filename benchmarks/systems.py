"""What simulates one network in the benchmarks: this library and others; and the plain network."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from results.networks import convert_random
from tcl_jax import cluster, conversion, simulation
from tcl_jax.graph.synapses import WEIGHTS

# Image shapes.
NETWORKS = {
    "cnet": (28, 28, 1),
    "vgg16": (32, 32, 3),
    "resnet20": (32, 32, 3),
    "mobilenet": (32, 32, 3),
}
PEERS = {
    "spikingjelly": ["single/nchw", "single/channels_last", "multi/nchw", "multi/channels_last"],
    "sinabs": ["multi/nchw", "multi/channels_last"],
    "snntorch": ["single/nchw", "single/channels_last"],
}
ANNS = {"ann-jax": ["jit"], "ann-torch": ["ann/nchw", "ann/channels_last"]}
SYSTEMS = {"tcl_jax": ["float32"], **PEERS, **ANNS}
"""By name, the ways in which each can be run: ours by its type of weights."""

Run = Callable[[np.ndarray, int], np.ndarray]
"""From images and T to the output neurons' spike counts, or of a plain network to its logits."""


class System:
    """One library, in one of the ways that it can be run, with a workload; compiled.

    Attributes:
        compile_seconds: by latency, and of `lower`: what is waited for before the first run.
        memory: by latency, bytes that XLA takes for the program, its arguments and its result.
    """

    def __init__(
        self, system: str, variant: str, network: str, batch: int, latencies: Sequence[int]
    ):
        self.compile_seconds: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        graph, self.images = workload(network, batch)
        if system == "tcl_jax":
            graph = jax.device_get(WEIGHTS.find(variant)(graph, self.images))
        self.is_ann = system in ANNS
        self.latencies = [1] if self.is_ann else list(latencies)
        self.repeats = 10 if self.is_ann else 3 if batch == 1 else 1
        if system in PEERS or system == "ann-torch":
            from benchmarks import peers

            self.run: Run = peers.runner(graph, system, variant, batch)
            self.run(self.images, 2)  # they are ready after a few steps
            return
        started = time.perf_counter()
        devices = cluster.everywhere()
        lowered = devices.replicate(simulation.lower(graph))
        self.compile_seconds["lower"] = time.perf_counter() - started
        programs = {}
        for t in self.latencies:
            fn = conversion.evaluate if self.is_ann else partial(_counts, timesteps=t)
            started = time.perf_counter()
            programs[t] = jax.jit(fn).lower(lowered, devices.put(self.images)).compile()
            self.compile_seconds[str(t)] = time.perf_counter() - started
            self.memory[str(t)] = _memory(programs[t])
        self.run = lambda images, t: np.asarray(programs[t](lowered, devices.put(images)))
        for t in self.latencies:
            self.run(self.images, t)

    def measure(self) -> dict[str, Any]:
        """Seconds from images to counts at every T, or of one forward pass of a plain network."""
        seconds = {str(t): self._seconds(t) for t in self.latencies}
        first = self.run(self.images, self.latencies[0])
        return {
            "seconds": seconds,
            "counts": None if self.is_ann else [int(n) for n in first.ravel()],
            "compile": self.compile_seconds,
            "memory": self.memory,
            "resident": _resident(),
        }

    def _seconds(self, timesteps: int) -> float:
        taken = []
        for _ in range(self.repeats):
            started = time.perf_counter()
            self.run(self.images, timesteps)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)


def _counts(graph: conversion.Graph, x: jax.Array, timesteps: int) -> jax.Array:
    return simulation.simulate(graph, x, timesteps).output.counts


def _resident() -> int | None:
    """The most bytes of memory that this process has had; on an accelerator that tells nothing."""
    if jax.default_backend() != "cpu":
        return None
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _memory(program: jax.stages.Compiled) -> int:
    of = program.memory_analysis()
    return (
        of.argument_size_in_bytes
        + of.output_size_in_bytes
        + of.temp_size_in_bytes
        + of.generated_code_size_in_bytes
    )


def workload(network: str, batch: int) -> tuple[Any, np.ndarray]:
    """A converted network of random weights, and random images."""
    graph, _ = convert_random(network, NETWORKS[network])
    images = np.random.default_rng(1).normal(0, 1, (batch, *NETWORKS[network]))
    return jax.device_get(graph), images.astype(np.float32)


def counts_in_float64(network: str, batch: int, timesteps: int) -> dict[str, np.ndarray]:
    """By system, counts where no potential comes to lie beside its threshold by rounding.

    snnTorch is not among them: its neurons fire above the threshold, not at it.
    """
    from benchmarks import peers

    graph, images = workload(network, batch)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), graph)
    images = images.astype(np.float64)
    with jax.enable_x64(True):
        counts = jax.jit(partial(_counts, timesteps=timesteps))(wide, images)
        found = {"tcl_jax": np.asarray(counts)}
    for system in ("spikingjelly", "sinabs"):
        found[system] = peers.runner(wide, system, "multi/nchw", batch)(images, timesteps)
    return found
