"""Settings whose delay is not given, but found for each network."""

from dataclasses import dataclass, replace
from typing import Any

from tcl_jax import progress
from tcl_jax.cluster import Cluster
from tcl_jax.runs.batches import part
from tcl_jax.runs.converted import Converted
from tcl_jax.simulation.delay import estimate_delay
from tcl_jax.simulation.lowering import lower
from tcl_jax.simulation.settings import Simulation

IMAGES = 500
"""Training images, the last ones, on which a delay is estimated."""


@dataclass(frozen=True)
class AutoDelay:
    """Settings of a simulation, with the delay that `estimate_delay` finds.

    Attributes:
        settings: all others.
    """

    settings: Simulation

    def said(self) -> dict[str, Any]:
        """As `Simulation.said`."""
        return self.settings.said() | {"delay": "auto"}

    def distinguished(self) -> dict[str, Any]:
        """As `Simulation.distinguished`."""
        return self.settings.distinguished() | {"delay": "auto"}


def with_delay(
    settings: Simulation | AutoDelay,
    converted: Converted,
    timesteps: int,
    *,
    batch_size: int,
    cluster: Cluster,
) -> Simulation:
    """Settings of which all is known: the delay, where it is not, is estimated.

    Args:
        settings: of the simulation.
        converted: the spiking network, and its data.
        timesteps: the longest latency T.
        batch_size: images at a time, over all devices of one process.
        cluster: the processes, each of which calls this.

    Raises:
        InputError: as `estimate_delay`.
    """
    if isinstance(settings, Simulation):
        return settings
    own, how = cluster.own, settings.settings
    graph = own.replicate(lower(converted.artifact.graph, neurons=how.neurons))
    there = converted.dataset.info.num_train
    images = min(IMAGES, there)
    first, limit = part(images, batch_size, cluster)
    which: dict[str, Any] = {"first": there - images + first, "limit": limit, "cluster": own}
    batches = converted.batches("train", batch_size, **which)
    shown = cluster.writes
    with progress.bar("estimating delay", total=limit, unit="images", shown=shown) as done:
        delay = estimate_delay(graph, batches, timesteps, how, cluster=cluster, done=done)
    return replace(how, delay=delay)
