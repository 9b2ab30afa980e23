"""Plans of slices that are not here: what is read of a compiled program, and what follows."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import ROOT, commands, environment, run, succeed
from cli import converted as converted
from cli import trained as trained
from hypothesis import given
from hypothesis import strategies as st

from tcl_jax import cluster, data, programs, simulation, topology
from tcl_jax import graph as g
from tcl_jax.conversion import load
from tcl_jax.errors import InputError
from tcl_jax.runs.plan import plan_run
from tcl_jax.simulation.operations import analog_operations
from tcl_jax.simulation.split import Split
from tcl_jax.training import plan as plans
from tcl_jax.training import presets
from tcl_jax.training.plan import plan
from tcl_jax.training.task import task

pytest.importorskip("libtpu", reason="the TPU's compiler is for Linux on x86 alone")

SLICE = "v5e:2x2"


@pytest.fixture(scope="module")
def there() -> topology.Topology:
    return topology.find(SLICE)


@pytest.fixture(scope="module")
def planned(there) -> plans.Plan:
    return plan(presets.PRESETS.find("digits-cnet"), there)


def compiled(there, function, *shapes, dtype=jnp.float32):
    """For one chip's share: all arrays whole on each."""
    whole = there.cluster.whole
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=whole) for shape in shapes]
    return programs.read(jax.jit(function).lower(*arguments).compile())


def test_a_product_of_matrices(there):
    found = compiled(there, jnp.dot, (256, 512), (512, 128))
    assert found.flops == 2 * 256 * 512 * 128
    # Operands are fetched and the result is written, in whatever pieces.
    assert found.bytes == 4 * (256 * 512 + 512 * 128 + 256 * 128)
    assert found.memory >= found.bytes and not found.exchanges and found.cycles > 0


def test_a_loop_counts_as_often_as_it_runs(there):
    def steps(length):
        def function(x, w):
            return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), c.sum()), x, None, length=length)

        square = jnp.ones((128, 128))
        written = programs.flops_as_written(jax.jit(function).lower(square, square))
        return [compiled(there, function, (128, 128), (128, 128)).flops, written]

    assert [steps(n) for n in (3, 300)] == [[2 * 128**3 * n] * 2 for n in (3, 300)]


@pytest.mark.parametrize(
    ("dtype", "precision", "passes"),
    [
        pytest.param("float32", None, 1, marks=pytest.mark.long),
        pytest.param("float32", "high", 3, marks=pytest.mark.long),
        ("float32", "highest", 6),
        ("bfloat16", "highest", 1),
    ],
)
def test_float32_products_take_passes(dtype, precision, passes, there):
    """As many as the compiler has them take cycles."""

    def product(x, y):
        return jnp.dot(x, y, precision=precision)

    found = compiled(there, product, (2048, 2048), (2048, 2048), dtype=jnp.dtype(dtype))
    assert found.passes == passes * found.flops == passes * 2 * 2048**3
    assert found.cycles / there.chip.clock == pytest.approx(
        found.passes / there.chip.flops, rel=0.15
    )


def test_what_lies_in_tiles_takes_whole_ones():
    (array,) = programs._arrays("f32[3,200]{1,0:T(8,128)}")
    assert array.bytes == 4 * 8 * 256 and array.in_memory
    (array,) = programs._arrays("bf16[3,200]{0,1:T(8,128)(2,1)S(1)}")
    assert array.bytes == 2 * 128 * 200 and not array.in_memory


@given(
    side=st.integers(1, 9),
    window=st.integers(1, 4),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.integers(1, 3),
    kernel_dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
)
def test_products_of_a_convolution(
    side, window, stride, padding, dilation, kernel_dilation, groups
):
    """Counted one by one: those of a number that is there with a weight."""
    span = (window - 1) * kernel_dilation + 1
    if (side - 1) * dilation + 1 + sum(padding) < span:
        return
    lowered = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x,
            w,
            (stride, 1),
            (padding, (0, 0)),
            lhs_dilation=(dilation, 1),
            rhs_dilation=(kernel_dilation, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
    ).lower(jnp.ones((2, side, 3, 2 * groups)), jnp.ones((window, 1, 2, 4 * groups)))
    there = np.zeros((side - 1) * dilation + 1 + sum(padding), int)
    there[padding[0] : there.size - padding[1] : dilation] = 1
    rows = range(0, there.size - span + 1, stride)
    taps = sum(there[row + k * kernel_dilation] for row in rows for k in range(window))
    assert programs.flops_as_written(lowered) == 2 * 2 * 3 * taps * 2 * 4 * groups


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_training_step(accumulate, there, planned):
    """Every gradient is summed over the chips; the state is what it is on any device."""
    config = replace(planned.config, accumulate=accumulate)
    found = planned if accumulate == 1 else plan(config, there)
    it = task(config, data.load("digits").info, cluster.everywhere())
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(it.shapes.params))
    statistics = sum(math.prod(x.shape) for x in jax.tree.leaves(it.shapes.batch_stats))
    (exchange,) = found.program.exchanges
    assert exchange.kind == "all-reduce"
    assert exchange.bytes >= 4 * (parameters + accumulate * statistics)
    assert found.state == sum(x.nbytes for x in jax.tree.leaves(it.fresh()))
    # Each product comes back as two, but for the first, whose images want no gradient.
    image = jax.ShapeDtypeStruct((64, *found.info.image_shape), jnp.float32)
    forward = jax.jit(partial(it.model.apply, train=False)).lower(it.shapes.network, image)
    assert 2.9 < found.model_flops / (programs.flops_as_written(forward) / 4) < 3
    assert found.program.flops == found.model_flops


def test_what_a_plan_says(planned):
    found, chip, line = planned, planned.topology.chip, planned.roofline
    assert line.products == found.program.passes / chip.flops
    assert line.memory == found.program.bytes / chip.bandwidth
    assert line.seconds == max(line.products, line.memory, line.links)
    at = found.at(2.0)
    assert at["images_per_second"] == 32 and "cores" not in at
    assert at["epochs_per_hour"] == 1800 / 22
    assert at["utilisation"] == found.model_flops / 2 / chip.flops


def test_a_batch_that_does_not_fit(there, monkeypatch):
    """One that does is named, and has been compiled."""
    config, tried = presets.PRESETS.find("digits-cnet"), []

    def compiled(batch_size):
        tried.append(batch_size)
        if batch_size > 500:
            raise programs.NoRoom(used=batch_size * 2.0**25, limit=15 * 2.0**30)

    monkeypatch.setattr(plans, "_lowered", lambda it, config, *_: config.batch_size)
    monkeypatch.setattr(programs, "compiled", compiled)
    with pytest.raises(
        InputError,
        match=r"batch_size=1024 needs 32\.0 of 15\.0 GiB on each chip of v5e:2x2: (\d+) fit",
    ) as refused:
        plan(replace(config, batch_size=1024), there)
    fitting = int(re.findall(r"(\d+) fit", str(refused.value))[0])
    assert tried == [1024, fitting] and 400 < fitting <= 480 and fitting % 4 == 0
    monkeypatch.setattr(programs, "compiled", lambda *_: _full())
    with pytest.raises(InputError, match="choose more chips, or a larger accumulate"):
        plan(config, there)


def _full():
    raise programs.NoRoom(used=2e10, limit=1e10)


@pytest.mark.long
def test_the_compiler_knows_what_does_not_fit():
    there = topology.find("v5e:1x1")
    config = replace(presets.PRESETS.find("cifar10-cnet"), batch_size=49152)
    with pytest.raises(
        InputError, match=r"needs \d\d\.\d of 15\.\d GiB on each .*: (\d+) fit$"
    ) as no:
        plan(config, there)
    fitting = int(re.findall(r"(\d+) fit", str(no.value))[0])
    found = plan(replace(config, batch_size=fitting), there)
    assert 0.8 * there.chip.memory < found.program.memory < there.chip.memory


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "plan must be a chip and its numbers along axes, as v5e:16x16, got 'v5e'"),
        ("v9:2x2", "unknown TPU chip 'v9': choose from v4, v5e, v5p, v6e"),
        ("v5e:3x5", "plan names no slice there is, v5e:3x5: "),
    ],
)
def test_slices_that_there_are_not(name, words):
    with pytest.raises(InputError) as refused:
        topology.find(name)
    assert str(refused.value).startswith(words) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "chips", "processes"), [("v4:4x4x4", 64, 16), ("v5e:1x1", 1, 1), ("v6e:4x4", 16, 4)]
)
def test_a_chip_is_a_device(name, chips, processes):
    found = topology.find(name)
    assert (found.cluster.mesh.size, found.cluster.processes) == (chips, processes)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^plan needs the TPU's compiler: pip install 'tcl_jax\["):
        topology.find(SLICE)


COMMAND = """
from tcl_jax.cli.processes import ALONE
with ALONE.joined(1) as cluster:
    print(cluster.mesh)
"""


def test_commands_say_nothing_of_a_tpu_that_is_not_here():
    """Where the compiler is installed, JAX tries it at the start."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND],
        cwd=ROOT,
        env=environment(JAX_PLATFORMS=""),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_says_what_training_takes(tmp_path):
    folder = tmp_path / "run"
    preset = ["digits-cnet", "--batch-size", 1024, "--workdir", folder]
    (line,) = commands("train.py", "--plan", PRESET=preset)
    done = succeed("train", *line, COLUMNS="80")
    assert done.err == "" and not folder.exists()
    lines = done.out.splitlines()
    assert lines[0] == "a step of cnet in float32 on v5e:16x16, 256 chips, with 4 images on each"
    assert max(map(len, lines)) <= 80
    for words in ("all-reduce, ", "of the state", "197 TFLOP/s", "819 GB/s", "MFU"):
        assert words in done.out
    assert "cores" not in done.out  # digits are not decoded
    done = run("train", "digits-cnet", "--plan", SLICE, "--batch-size", 30)
    assert done.status == 2
    assert done.err.startswith("error: a batch of 30 cannot be split over 4 devices")
    for more in ("--resume", "--distributed"):
        done = run("train", "digits-cnet", "--plan", SLICE, more)
        assert done.status == 2
        assert done.err == "error: --plan does not train: leave --resume and --distributed out\n"


def test_a_command_says_what_simulation_takes(trained, converted, there, monkeypatch):
    """The same products as here, each T times but those of the image; at the highest precision, or
    where spikes are weighted at many places three times in bfloat16."""
    options = ["--snn", converted, "--batch-size", 40, "--plan", SLICE, "--timesteps"]
    found = {}
    for timesteps in (10, 20):
        done = succeed("simulate", trained.folder, *options, timesteps, COLUMNS="80")
        assert done.err == "" and max(map(len, done.out.splitlines())) <= 80
        assert (
            f"for T = {timesteps} on v5e:2x2, 4 chips, 40 images at a time on each of 1 host"
            in done.out
        )
        ((gflop, passes),) = re.findall(r"([\d.]+) GFLOP × ([\d.]+) passes", done.out)
        found[timesteps] = float(gflop), float(passes)
        assert "s for all 359" in done.out
    graph = load(trained.folder / converted).graph
    every, first = (analog_operations(graph, first=only).macs for only in (False, True))
    lowered = simulation.lower(graph, "tpu", simulation.IF())
    shapes = g.shapes(graph)
    of_three = 0.0
    for node in lowered.nodes:
        if isinstance(node.op, Split):
            events = jnp.ones((1, *shapes[graph.nodes[node.inputs[0]].name]))
            of_three += float(node.op.parts[0].paths(events).sum())
    assert 0.5 < of_three / every < 1
    for timesteps, (gflop, passes) in found.items():
        once = first + timesteps * (every - first - of_three)
        thrice = 3 * timesteps * of_three
        assert gflop == pytest.approx(10 * 2 * (once + thrice) / 1e9, rel=1e-3)
        assert passes == pytest.approx((6 * once + thrice) / (once + thrice), rel=1e-2)

    # The same batch, where a chip has no room for it.
    monkeypatch.setattr(programs, "compiled", lambda batch_size: batch_size > 24 and _full())
    monkeypatch.setattr("tcl_jax.runs.plan.lowered", lambda graph, shape, size, *_, **how: size)
    with pytest.raises(InputError, match=r"batch_size=40 needs 18\.6 of 9\.3 GiB .*: 16 fit"):
        plan_run(trained.folder, there, 10, snn=converted, batch_size=40)
    for more in ("--energy", "--distributed"):
        done = run("simulate", trained.folder, *options, 10, more)
        assert done.status == 2 and done.err.startswith("error: --plan compiles the curve alone: ")
