"""The training state, and the jitted step that changes it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from tcl_jax.clipping import LAMBDA
from tcl_jax.data import DataInfo, standardize
from tcl_jax.promotion import implicit

Batch = dict[str, Any]
Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """All that a step changes, in float32 whatever type the network computes in."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: dict[str, Array]
    """Loss and accuracy summed since the epoch began: kept on the device, and resumed with it."""
    average: Variables | None = None
    """The running mean of parameters and batch statistics, where there is one."""

    @property
    def network(self) -> Variables:
        """What is tested and converted."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    info: DataInfo,
    seed: int,
    *,
    average: bool = False,
    where: TrainState | None = None,
) -> TrainState:
    """A fresh state, the same for the same seed.

    Args:
        model: the network.
        tx: the optimizer.
        info: of its images.
        seed: of its weights.
        average: keep a running mean of the network.
        where: a sharding for each array, which is made there at once; JAX's choice if None.
    """

    # As one program: one for each operation would be compiled for seconds, and run the network.
    def make(key: Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *info.image_shape)))
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            batch_stats,
            tx.init(params),
            {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())},
            {"params": params, "batch_stats": batch_stats} if average else None,
        )

    state: TrainState = jax.jit(make, out_shardings=where)(jax.random.key(seed))
    return state


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Of every image.

    Args:
        logits: the network's.
        labels: the true classes.
        smoothing: part of each label that is spread evenly over all classes (Szegedy et al. 2016,
            *Rethinking the Inception Architecture*, §7).
    """
    if not smoothing:
        return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    exact = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.asarray(optax.softmax_cross_entropy(logits, optax.smooth_labels(exact, smoothing)))


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    info: DataInfo,
    *,
    smoothing: float = 0.0,
    ema: float = 0.0,
    accumulate: int = 1,
    where: TrainState | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Float[Array, "3"]]]:
    """``state, batch -> state, numbers``, which `read_metrics` names; the state is donated.

    Args:
        model: the network.
        tx: the optimizer.
        info: of its images.
        smoothing: of labels, as `cross_entropy` has it.
        ema: decay of the running mean, where the state has one; less at the first steps, whose
            weights are soon of no worth: min(ema, (1 + step)/(10 + step)).
        accumulate: parts of a batch that are computed one after another, their gradients averaged:
            the update of the whole batch, but that batch normalisation has the statistics of one
            part at a time.
        where: a sharding for each array of the state; JAX's choice if None.
    """

    apply: Any = model.apply  # typed as returning one value or two, by its arguments

    def loss_of(params: Any, batch_stats: Any, batch: Batch) -> tuple[Array, tuple[Array, Any]]:
        logits, updated = apply(
            {"params": params, "batch_stats": batch_stats},
            standardize(batch["image"], info),
            train=True,
            mutable=["batch_stats"],
        )
        accuracy = jnp.mean(logits.argmax(-1) == batch["label"])
        loss = cross_entropy(logits, batch["label"], smoothing).mean()
        return loss, (accuracy, updated["batch_stats"])

    def gradient(params: Any, batch_stats: Any, batch: Batch) -> tuple[Any, Any]:
        (loss, (accuracy, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, batch_stats, batch
        )
        return batch_stats, ({"loss": loss, "accuracy": accuracy}, grads)

    def mean_gradient(params: Any, batch_stats: Any, batch: Batch) -> tuple[Any, Any]:
        def add(carry: tuple[Any, Any], part: Batch) -> tuple[tuple[Any, Any], None]:
            batch_stats, found = gradient(params, carry[0], part)
            return (batch_stats, jax.tree.map(jnp.add, carry[1], found)), None

        def split(x: Array) -> Array:
            # Neighbours into different parts: a device has neighbours, and so a share of each part.
            return x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1)

        parts = jax.tree.map(split, batch)
        first = jax.tree.map(lambda x: x[0], parts)
        _, shapes = jax.eval_shape(gradient, params, batch_stats, first)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (batch_stats, total), _ = jax.lax.platform_dependent(
            (batch_stats, nothing),
            parts,
            default=partial(jax.lax.scan, add),
            # XLA leaves gradients of convolutions in loops to code that is many times slower.
            cpu=partial(jax.lax.scan, add, unroll=True),
        )
        return batch_stats, jax.tree.map(lambda x: x / accumulate, total)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Array]:
        batch_stats, (metrics, grads) = (gradient if accumulate == 1 else mean_gradient)(
            state.params, state.batch_stats, batch
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        sums = jax.tree.map(jnp.add, state.sums, metrics)
        average = state.average
        if average is not None:
            network = {"params": params, "batch_stats": batch_stats}
            average = _nearer(average, network, state.step, ema)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, sums, average)
        smallest = jnp.min(jnp.stack([jnp.inf, *lambdas(params).values()]))
        return state, jnp.stack([metrics["loss"], metrics["accuracy"], smallest])

    return jax.jit(train_step, donate_argnums=0, out_shardings=where and (where, where.step))


@implicit()
def _nearer(average: Variables, network: Variables, step: Array, ema: float) -> Any:
    """The running mean, after a step that has led to a network."""
    decay = jnp.minimum(ema, (1 + step) / (10 + step))
    return optax.incremental_update(network, average, 1 - decay)


def read_metrics(numbers: Float[Array, "3"]) -> dict[str, float]:
    """Loss and accuracy of a step, and the smallest λ after it, in one transfer."""
    loss, accuracy, smallest = np.asarray(numbers).tolist()
    return {"loss": loss, "accuracy": accuracy, "smallest_lambda": smallest}


def lambdas(params: Any) -> dict[str, Float[Array, ""]]:
    """λ of every clipped layer, by the layer's path; empty for a network without TCL.

    >>> import jax.numpy as jnp
    >>> from tcl_jax.training.step import lambdas
    >>> lambdas({"act1": {"tcl": {"lam": jnp.float32(4.0)}}, "fc": {"kernel": jnp.ones(2)}})
    {'act1': Array(4., dtype=float32)}
    """
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == LAMBDA:
            found["/".join(k.key for k in path[:-1]).removesuffix("/tcl")] = value
    return found
