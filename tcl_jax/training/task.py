"""What a configuration comes to, for images like these and on these devices: state and step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import optax
from jaxtyping import Array

from tcl_jax import data
from tcl_jax.cluster import Cluster
from tcl_jax.training import optimizer
from tcl_jax.training.config import Config
from tcl_jax.training.placement import placed
from tcl_jax.training.setup import build_model
from tcl_jax.training.step import Batch, TrainState, init_state, make_train_step


@dataclass(frozen=True)
class Task:
    """Nothing of it is computed yet.

    Attributes:
        model: the network.
        steps_per_epoch: full batches.
        total_steps: of all epochs.
        schedule: the learning rate at each step.
        fresh: makes the state of step 0.
        shapes: of a state's arrays.
        where: their shardings.
        step: as `make_train_step` has it.
    """

    model: nn.Module
    steps_per_epoch: int
    total_steps: int
    schedule: optax.Schedule
    fresh: Callable[[], TrainState]
    shapes: TrainState
    where: TrainState
    step: Callable[[TrainState, Batch], tuple[TrainState, Array]]


def task(
    config: Config, info: data.DataInfo, cluster: Cluster, *, shard_optimizer: bool = False
) -> Task:
    """The task of training.

    Args:
        config: what to train.
        info: of its images.
        cluster: the devices.
        shard_optimizer: as `tcl_jax.training.fit` has it.

    Raises:
        InputError: the batch does not fit the devices or the images, or the network not the images.
    """
    cluster.check_batch_size(config.batch_size, config.accumulate)
    model, optim = build_model(config, info), config.optim
    steps_per_epoch = data.steps_per_epoch(info, config.batch_size)
    total_steps = steps_per_epoch * config.epochs
    tx = optimizer.make(optim, total_steps, config.batch_size)
    fresh = partial(init_state, model, tx, info, config.seed, average=optim.ema > 0)
    shapes = jax.eval_shape(fresh)
    where = placed(shapes, cluster, shard_optimizer=shard_optimizer)
    return Task(
        model,
        steps_per_epoch,
        total_steps,
        optimizer.learning_rate(optim, total_steps, config.batch_size),
        partial(fresh, where=where),
        shapes,
        where,
        make_train_step(
            model,
            tx,
            info,
            smoothing=optim.label_smoothing,
            ema=optim.ema,
            accumulate=config.accumulate,
            where=where,
        ),
    )
