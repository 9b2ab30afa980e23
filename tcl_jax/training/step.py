"""Training state and the two jitted steps: train and evaluate."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from tcl_jax.clipping import LAMBDA
from tcl_jax.data import DataInfo, standardize

Batch = dict[str, Any]
Metrics = dict[str, Array]
Inference = Callable[[Any, Array], Array]


@flax.struct.dataclass
class TrainState:
    """All that a step changes."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    sums: Metrics
    """Loss and accuracy summed since the epoch began: kept on the device, and resumed with it."""


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, info: DataInfo, seed: int
) -> TrainState:
    """A fresh state, the same for the same seed."""

    # As one program: one for each operation would be compiled for seconds, and run the network.
    @jax.jit
    def make(key: Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *info.image_shape)))
        params = variables["params"]
        return TrainState(
            jnp.zeros((), jnp.int32),
            params,
            variables.get("batch_stats", {}),
            tx.init(params),
            {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())},
        )

    state: TrainState = make(jax.random.key(seed))
    return state


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, info: DataInfo
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """``state, batch -> state, {loss, accuracy, smallest_lambda}``; the state is donated."""

    apply: Any = model.apply  # typed as returning one value or two, by its arguments

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        images = standardize(batch["image"], info)

        def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
            logits, updated = apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, batch["label"]).mean(), (logits, updated["batch_stats"])

        (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "accuracy": jnp.mean(logits.argmax(-1) == batch["label"])}
        sums = jax.tree.map(jnp.add, state.sums, metrics)
        state = TrainState(state.step + 1, params, batch_stats, opt_state, sums)
        metrics["smallest_lambda"] = jnp.min(jnp.stack([jnp.inf, *lambdas(params).values()]))
        return state, metrics

    return jax.jit(train_step, donate_argnums=0)


def inference(model: nn.Module, precision: str | None = None) -> Inference:
    """``variables, standardised images -> logits``, of the network in inference mode.

    Args:
        model: the network.
        precision: of products, as `jax.default_matmul_precision` takes it; JAX's setting when None.
    """

    def logits(variables: Any, images: Array) -> Array:
        with jax.default_matmul_precision(precision) if precision else nullcontext():
            return cast(Array, model.apply(variables, images, train=False))

    return logits


def make_eval_step(
    model: nn.Module, info: DataInfo, precision: str | None = None
) -> Callable[[Any, Metrics, Batch], Metrics]:
    """``variables, sums, masked batch -> sums`` of {loss, correct, seen}, from `no_sums` on.

    Each device sums what it has seen, so that none waits for another.  Steps that meet in an
    all-reduce can deadlock on CPU devices where 32 are in flight, the most that XLA launches on
    one: the thread that waits to launch another is then lacking where a step waits for its part on
    the other device.  XLA aborts the process after 40 seconds.
    """

    network = inference(model, precision)

    @jax.jit
    def eval_step(variables: Any, sums: Metrics, batch: Batch) -> Metrics:
        logits = network(variables, standardize(batch["image"], info))
        mask = batch["mask"]
        found = {
            "loss": jnp.where(mask, cross_entropy(logits, batch["label"]), 0.0),
            "correct": (logits.argmax(-1) == batch["label"]) & mask,
            "seen": mask,
        }
        after: Metrics = jax.tree.map(lambda s, f: s + f.reshape(s.size, -1).sum(1), sums, found)
        return after

    return eval_step


def no_sums(mesh: Mesh) -> Metrics:
    """What an evaluation starts from: for each device a sum of its own."""
    on_each = NamedSharding(mesh, PartitionSpec("data"))
    types = {"loss": jnp.float32, "correct": jnp.int32, "seen": jnp.int32}
    return {name: jnp.zeros(mesh.size, dtype, device=on_each) for name, dtype in types.items()}


def rates(sums: Metrics) -> dict[str, float]:
    """What an evaluation ends with: mean loss, accuracy, and the number of images."""
    on_host = process_allgather(sums, tiled=True)
    total = {name: values.sum().item() for name, values in on_host.items()}
    seen = total["seen"]
    return {"loss": total["loss"] / seen, "accuracy": total["correct"] / seen, "images": seen}


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
