"""Slices of TPU chips that are not here: devices to compile for, and what is published of them."""

import importlib.util
import os
import re
from dataclasses import dataclass

import jax
from jax.experimental import topologies

from tcl_jax import cluster
from tcl_jax.cluster import Cluster
from tcl_jax.errors import InputError, first_line
from tcl_jax.registry import Registry


@dataclass(frozen=True)
class Chip:
    """What is published of a TPU chip and of its host (Google Cloud, *TPU architecture*).

    Attributes:
        flops: products and sums of bfloat16 a second, at most.
        memory: bytes of HBM.
        bandwidth: bytes a second, of that memory.
        links: bytes a second to and from all its neighbours.
        clock: cycles a second, at which its matrix units come to `flops`.
        cores: virtual CPUs of its host, for each of the host's chips.
        halves: whether it has two cores, which a program uses as one device.
    """

    flops: float
    memory: int
    bandwidth: float
    links: float
    clock: float
    cores: float
    halves: bool = False


CHIPS = Registry(
    "TPU chip",
    {
        "v4": Chip(275e12, 32 << 30, 1228e9, 300e9, 1.05e9, 240 / 4, halves=True),
        "v5e": Chip(197e12, 16 << 30, 819e9, 200e9, 1.5e9, 224 / 8),
        "v5p": Chip(459e12, 95 << 30, 2765e9, 600e9, 1.75e9, 208 / 4, halves=True),
        "v6e": Chip(918e12, 32 << 30, 1640e9, 448e9, 1.75e9, 180 / 8),
    },
)
"""By the names that slices begin with."""

_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclass(frozen=True)
class Topology:
    """A slice.

    Attributes:
        name: as ``v5e:16x16``.
        chip: of which it consists.
        cluster: its devices, one a chip, as the first process of a program on it has them.
    """

    name: str
    chip: Chip
    cluster: Cluster


def expect_no_tpu() -> None:
    """Keep the TPU's compiler from asking which TPU this machine is.

    It does so in vain, for minutes on some networks, and complains; and it would run but once at a
    time, as where it drives a TPU.
    """
    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)


def find(name: str) -> Topology:
    """A slice, to compile for; the TPU's own compiler does that, on any x86 machine with Linux.

    Args:
        name: the chip and how many of them stand along each axis, as ``v5e:16x16``.

    Raises:
        InputError: there is no such slice, or the compiler is not installed.
    """
    chip = CHIPS.find(name.partition(":")[0])
    if not re.fullmatch(r"\w+:\d+(x\d+)+", name):
        raise InputError(
            f"must be a chip and its numbers along axes, as v5e:16x16, got {name!r}", "plan"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("needs the TPU's compiler: pip install 'tcl_jax[plan]'", "plan")
    expect_no_tpu()
    sides = [int(n) for n in re.findall(r"\d+", name.partition(":")[2])]
    try:
        devices = topologies.get_topology_desc(
            name,
            platform="tpu",
            chip_config_name="megacore" if chip.halves else "default",
            # The chips of a host stand in a square, but where the slice is less.
            chips_per_host_bounds=[min(2, n) for n in sides[:2]] + [1],
        ).devices
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"names no slice there is, {name}: {first_line(error)}", "plan") from None
    return Topology(name, chip, cluster.over(devices))
