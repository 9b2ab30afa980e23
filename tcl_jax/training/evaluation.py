"""How well a network does on a split, its sums kept on the devices until the end."""

from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from tcl_jax import data
from tcl_jax.cluster import Cluster
from tcl_jax.training.step import Batch, cross_entropy

Sums = dict[str, Array]
Inference = Callable[[Any, Array], Array]


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
    model: nn.Module, info: data.DataInfo, precision: str | None = None
) -> Callable[[Any, Sums, Batch], Sums]:
    """``variables, sums, masked batch -> sums`` of {loss, correct, seen}, from `no_sums` on.

    Each device sums what it has seen, so that none waits for another.  Steps that meet in an
    all-reduce can deadlock on CPU devices where 32 are in flight, the most that XLA launches on
    one: the thread that waits to launch another is then lacking where a step waits for its part on
    the other device.  XLA aborts the process after 40 seconds.
    """

    network = inference(model, precision)

    @jax.jit
    def eval_step(variables: Any, sums: Sums, batch: Batch) -> Sums:
        logits = network(variables, data.standardize(batch["image"], info))
        mask = batch["mask"]
        found = {
            "loss": jnp.where(mask, cross_entropy(logits, batch["label"]), 0.0),
            "correct": (logits.argmax(-1) == batch["label"]) & mask,
            "seen": mask,
        }
        after: Sums = jax.tree.map(lambda s, f: s + f.reshape(s.size, -1).sum(1), sums, found)
        return after

    return eval_step


def no_sums(mesh: Mesh) -> Sums:
    """What an evaluation starts from: for each device a sum of its own."""
    on_each = NamedSharding(mesh, PartitionSpec("data"))
    types = {"loss": jnp.float32, "correct": jnp.int32, "seen": jnp.int32}
    return {name: jnp.zeros(mesh.size, dtype, device=on_each) for name, dtype in types.items()}


def rates(sums: Sums) -> dict[str, float]:
    """What an evaluation ends with: mean loss, accuracy, and the number of images."""
    on_host = process_allgather(sums, tiled=True)
    total = {name: values.sum().item() for name, values in on_host.items()}
    seen = total["seen"]
    return {"loss": total["loss"] / seen, "accuracy": total["correct"] / seen, "images": seen}


def evaluate(
    variables: Any,
    eval_step: Any,
    source: data.Source,
    batch_size: int,
    cluster: Cluster,
    *,
    done: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Mean loss and accuracy over a whole split, exact whatever the batch size.

    Args:
        variables: of the network, the same on every device.
        eval_step: of `make_eval_step`.
        source: the split.
        batch_size: images at a time, over all devices of all processes.
        cluster: the devices.
        done: called after each batch.
    """
    sums = no_sums(cluster.mesh)
    batches = data.eval_batches(source, batch_size=batch_size, shard=cluster.shard)
    with closing(batches):
        for batch in batches:
            sums = eval_step(variables, sums, cluster.put(batch))
            done()
    return rates(sums)
