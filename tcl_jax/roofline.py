"""How long a program takes at least on a slice of TPU chips."""

from dataclasses import asdict, dataclass
from typing import Any

from tcl_jax.programs import Program
from tcl_jax.topology import Topology


@dataclass(frozen=True)
class Roofline:
    """Seconds of one run, were each part of a chip busy without a break.

    None can be done without, and they may all go on at once: the longest is a bound from below
    (Williams et al. 2009, *Roofline*).

    Attributes:
        products: of the matrix units.
        memory: of what goes to and from it.
        links: of what chips exchange, each of n in a ring giving and taking (n − 1)/n of it twice.
        expected: by the compiler's own account of its operations, one after another; 0 where it
            gives none.
    """

    products: float
    memory: float
    links: float
    expected: float

    @property
    def seconds(self) -> float:
        """The bound."""
        return max(self.products, self.memory, self.links)


def roofline(program: Program, topology: Topology) -> Roofline:
    """Of a program that was compiled for a slice."""
    chip, chips = topology.chip, topology.cluster.mesh.size
    exchanged = sum(exchange.bytes for exchange in program.exchanges)
    return Roofline(
        products=program.passes / chip.flops,
        memory=program.bytes / chip.bandwidth,
        links=4 * exchanged * (chips - 1) / chips / chip.links,
        expected=program.cycles / chip.clock,
    )


def costs(program: Program, topology: Topology) -> dict[str, Any]:
    """Of a program and its roofline on a slice, for a record."""
    line = roofline(program, topology)
    return {
        "topology": topology.name,
        "chips": topology.cluster.mesh.size,
        "published": asdict(topology.chip),
        "memory_bytes": program.memory,
        "flops": program.flops,
        "passes": program.passes,
        "bytes": program.bytes,
        "exchanges": [asdict(exchange) for exchange in program.exchanges],
        "seconds": {**asdict(line), "bound": line.seconds},
    }
