"""What rounded weights change of a run's network: classes, accuracy, and activations by layer."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Real

from tcl_jax import graph as g
from tcl_jax import progress
from tcl_jax.cluster import Cluster
from tcl_jax.report.layers import parts
from tcl_jax.runs.batches import part
from tcl_jax.runs.trained import Run


def rounding(
    run: Run, exact: g.Graph, rounded: g.Graph, images: int, batch_size: int, cluster: Cluster
) -> dict[str, Any]:
    """Compare two networks, read as analog ones, on test images.

    Args:
        run: has the images.
        exact: the normalised network.
        rounded: the same with weights of another type.
        images: how many.
        batch_size: images at a time.
        cluster: the processes, each of which takes a part of the images.

    Returns:
        How many images, and on how many both give the same class; the accuracy of either; and by
        layer the mean \\|Δ activation\\| in units of λ.
    """
    images = min(images, run.dataset.info.num_test)
    first, limit = part(images, batch_size, cluster)
    sums: Any = None

    def batches() -> Iterator[tuple[Array, ...]]:
        for batch in run.batches("test", batch_size, first=first, limit=limit):
            yield batch["image"], batch["label"], batch["mask"]

    with progress.bar("comparing", total=limit, unit="images", shown=cluster.writes) as done:
        for x, label, mask in parts(batches(), exact, 2):
            found = jax.tree.map(float, _compared(exact, rounded, x, label, mask))
            sums = jax.tree.map(float.__add__, sums, found) if sums else found
            done(int(np.sum(mask)))
    of_all = [found for found in cluster.gather(sums) if found]
    means = jax.tree.map(lambda *found: sum(found) / images, *of_all)
    same = round(means.pop("same") * images)
    return {"images": images, "same_class": same, **means}


@jax.jit
def _compared(
    exact: g.Graph,
    rounded: g.Graph,
    x: Real[Array, "b ..."],
    label: Int[Array, " b"],
    mask: Bool[Array, " b"],
) -> dict[str, Any]:
    """Sums over images."""
    values: list[dict[str, Array]] = [{}, {}]
    classes = [
        jnp.argmax(g.evaluate(graph, x, seen.__setitem__), -1)
        for graph, seen in zip((exact, rounded), values, strict=True)
    ]

    def total(found: Array) -> Array:
        return jnp.sum(jnp.where(mask, found, 0).astype(jnp.float32))

    def change(name: str) -> Array:
        a, b = (seen[name] for seen in values)
        return jnp.mean(jnp.abs(a - b).reshape(len(x), -1), -1)

    return {
        "same": total(classes[0] == classes[1]),
        "accuracy": {
            kind: total(found == label)
            for kind, found in zip(("exact", "rounded"), classes, strict=True)
        },
        "layers": {node.name: total(change(node.name)) for node in exact.neurons},
    }
