"""What a backend rounds products to: `python benchmarks/precision.py` writes results/precision.

The simulation of a converted network is compiled ahead of time for a TPU, at the precision that
tcl_jax asks for and at the backend's default; bfloat16 arrays in the program are roundings to 8
bits.  And on the backend at hand, logits are compared with those in float64.  Weights are random.
Needs no TPU, but its compiler, as in benchmarks/requirements.txt.
"""

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "results" / "precision"
NETWORKS = ("cnet", "resnet20")
IMAGE, BATCH, TIMESTEPS = (32, 32, 3), 100, 16
TPU = "v5e:2x2"
PRECISIONS = ("default", "highest")


def main() -> int:
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is none to ask
    import jax

    from results.networks import convert_random
    from tcl_jax import provenance
    from tcl_jax.conversion import convolution

    rows = []
    for network in NETWORKS:
        graph = jax.device_get(convert_random(network, IMAGE)[0])
        for precision in PRECISIONS:
            convolution.PRECISION = precision
            rows.append({"network": network, "precision": precision} | _compiled(graph))
            rows[-1]["error"] = _error(graph)
            print(rows[-1], flush=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {**provenance.describe(), "seed": 0, "tpu": TPU, "rows": rows}
    (RESULTS / "precision.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _write(record)
    return 0


def _compiled(graph: Any) -> dict[str, Any]:
    """Arrays of either type in the program of a simulation, and the seconds of its compilation."""
    import jax
    from jax.experimental import topologies

    from tcl_jax import simulation

    tpu = topologies.get_topology_desc(TPU, platform="tpu").devices[0]
    here = jax.sharding.SingleDeviceSharding(tpu)

    def like(a: Any) -> Any:
        return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here)

    def simulate(graph: Any, x: Any) -> Any:
        return simulation.simulate(graph, x, TIMESTEPS).counts

    images = like(np.zeros((BATCH, *IMAGE), np.float32))
    lowered = jax.jit(simulate).lower(jax.tree.map(like, graph), images)
    started = time.perf_counter()
    text = lowered.compile().as_text()
    seconds = time.perf_counter() - started
    found = {dtype: len(re.findall(rf"\b{dtype}\[", text)) for dtype in ("bf16", "f32")}
    return found | {"compilation_seconds": round(seconds, 1)}


def _error(graph: Any) -> float:
    """The largest difference of a logit from that in float64, over the largest logit."""
    import jax

    from tcl_jax.conversion import evaluate

    images = np.random.default_rng(0).normal(0, 1, (BATCH, *IMAGE)).astype(np.float32)
    # A function of its own: JAX would remember the program of another precision.
    found = np.asarray(jax.jit(lambda g, x: evaluate(g, x))(graph, images), np.float64)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), graph)
        exact = np.asarray(jax.jit(evaluate)(wide, images))
    return float(np.max(np.abs(found - exact)) / np.max(np.abs(exact)))


def _write(record: dict[str, Any]) -> None:
    from tcl_jax import provenance

    hardware = record["hardware"]
    lines = [
        "# What a backend rounds products to",
        "",
        "Written by `python benchmarks/precision.py`, which says how each figure is measured, at "
        f"commit {provenance.short(record['commit'])}, seed {record['seed']}.",
        "",
        f"The simulation of {BATCH} images of 32×32×3 over {TIMESTEPS} steps, compiled for a TPU "
        f"{TPU.split(':')[0]}: arrays in the program, where each of bfloat16 rounds to 8 bits. And "
        f"the largest error of a logit against float64, over the largest logit, on this machine "
        f"({hardware['device']}).",
        "",
        "| network | precision | bfloat16 arrays | float32 arrays | compiled in, s | error here |",
        "|---|---|---|---|---|---|",
        *(
            f"| {r['network']} | {r['precision']} | {r['bf16']} | {r['f32']} | "
            f"{r['compilation_seconds']} | {r['error']:.1e} |"
            for r in record["rows"]
        ),
        "",
        "`highest` is what tcl_jax asks for, whatever `jax_default_matmul_precision` says.",
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
