"""What training comes to on a slice of TPU chips, found by compiling its step for them."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import jax
import numpy as np

from tcl_jax import data, programs
from tcl_jax.programs import Program
from tcl_jax.roofline import Roofline, costs, roofline
from tcl_jax.topology import Topology
from tcl_jax.training.config import Config
from tcl_jax.training.placement import bytes_on_each
from tcl_jax.training.task import Task, task

IMAGES_PER_CORE = 450
"""Of ImageNet's sizes that a core decodes and cuts in a second: results/input has 458 and 726."""


@dataclass(frozen=True)
class Plan:
    """A training step of a slice.

    Attributes:
        config: what is trained.
        topology: the slice.
        info: of the images.
        state: bytes of the training state on each chip.
        program: the step's costs.
        roofline: the least time it takes.
        model_flops: products and sums that the step needs on each chip, as it is written: what the
            compiler makes twice is not in it.
        steps_per_epoch: full batches.
    """

    config: Config
    topology: Topology
    info: data.DataInfo
    state: int
    program: Program
    roofline: Roofline
    model_flops: float
    steps_per_epoch: int

    def at(self, step: float) -> dict[str, float]:
        """What it is to take so many seconds a step.

        Of `images_per_second` over all chips, `epochs_per_hour` without evaluations, `utilisation`
        of the matrix units by `model_flops` (MFU), and, where images have to be decoded, `cores` of
        a host for each of its chips.
        """
        chips, images = self.topology.cluster.mesh.size, self.config.batch_size / step
        found = {
            "images_per_second": images,
            "epochs_per_hour": 3600 / (step * self.steps_per_epoch),
            "utilisation": self.model_flops / (step * self.topology.chip.flops),
        }
        if data.DATASETS.find(self.info.name).photographs:
            found["cores"] = images / chips / IMAGES_PER_CORE
        return found

    def said(self) -> dict[str, Any]:
        """All of it, for a record."""
        line = self.roofline
        return {
            "network": self.config.model.name,
            "tcl": self.config.model.tcl,
            "dtype": self.config.model.dtype,
            "image_shape": self.info.image_shape,
            "batch_size": self.config.batch_size,
            "accumulate": self.config.accumulate,
            **costs(self.program, self.topology),
            "state_bytes": self.state,
            "model_flops": self.model_flops,
            "at_bound": self.at(line.seconds),
            "at_expected": self.at(line.expected) if line.expected else None,
            "images_per_core": IMAGES_PER_CORE,
        }


def plan(config: Config, topology: Topology, *, shard_optimizer: bool = False) -> Plan:
    """Compile the step of a training for a slice; on few cores that takes minutes.

    Args:
        config: what to train; of its images only what is published is taken.
        topology: the slice.
        shard_optimizer: as `tcl_jax.training.fit` has it.

    Raises:
        InputError: the batch does not fit the number of chips, or their memory: then one that does
            is named.
    """
    size = {"pad_to": config.data.pad_to, "image_size": config.data.image_size}
    info = data.described(config.data.name, **size)
    cluster = topology.cluster
    cluster.check_batch_size(config.batch_size, config.accumulate)

    it = task(config, info, cluster, shard_optimizer=shard_optimizer)
    state = bytes_on_each(it.shapes, it.where)

    @cache
    def step(batch_size: int) -> jax.stages.Lowered:
        of_size = replace(config, batch_size=batch_size)
        its = task(of_size, info, cluster, shard_optimizer=shard_optimizer)
        return _lowered(its, of_size, info, topology)

    program = programs.of_batch(
        step,
        config.batch_size,
        multiple=cluster.mesh.size * config.accumulate,
        fixed=state,
        where=topology.name,
        otherwise="choose more chips, or a larger accumulate",
    )
    return Plan(
        config,
        topology,
        info,
        state,
        program,
        roofline(program, topology),
        programs.flops_as_written(step(config.batch_size)) / cluster.mesh.size,
        it.steps_per_epoch,
    )


def _lowered(
    it: Task, config: Config, info: data.DataInfo, topology: Topology
) -> jax.stages.Lowered:
    """The step, for states and batches laid over the slice."""

    def rows(dtype: type, *shape: int) -> jax.ShapeDtypeStruct:
        whole = (config.batch_size, *shape)
        return jax.ShapeDtypeStruct(whole, dtype, sharding=topology.cluster.split)

    state = jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), it.shapes, it.where
    )
    batch = {"image": rows(np.uint8, *info.image_shape), "label": rows(np.int32)}
    return cast(jax.stages.Wrapped, it.step).lower(state, batch)
