"""Networks drawn at random, whole: what they compute and every spike, against NumPy in float64.

The NumPy side evaluates the drawn description as Eqs. 1-4 and 6 are written: batch norm as it
stands, thresholds λ, spikes of size λ.  Folding and normalising exist on the other side alone, so
that equal spikes show both to be exact.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tcl_jax import clip
from tcl_jax.conversion import evaluate, fold, normalise, trace, with_norms
from tcl_jax.promotion import implicit
from tcl_jax.simulation import Blocked, Scan, Simulation, measure, spike_trains

SIDE, CHANNELS, TIMESTEPS, LAM_OUT = 5, 2, 12, 1.3


@dataclass(frozen=True)
class Op:
    """One operation on earlier values, which are numbered; 0 is the image."""

    kind: str
    inputs: tuple[int, ...]
    settings: tuple[int, ...]
    seed: int

    def weights(self, shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        channels = shapes[self.inputs[0]][-1]
        match self.kind:
            case "conv":
                side, _, groups, wide = self.settings
                out = channels * wide
                shape = (side, side, channels // groups, out)
                scale = (2 / (side * side * channels // groups)) ** 0.5
                return {"w": rng.normal(0, scale, shape), "b": rng.normal(0.1, 0.1, out)}
            case "norm":
                scale = rng.uniform(0.5, 1.5, channels) * rng.choice((1, 1, -1), channels)
                shift = rng.normal(0.1, 0.3, channels)
                (some_dead,) = self.settings
                if some_dead:  # nothing is left of such a channel, and its neurons never fire
                    dead = rng.random(channels) < 0.5
                    scale, shift = np.where(dead, 0, scale), np.where(dead, -0.1, shift)
                return {"scale": scale, "shift": shift}
            case "neuron":
                by_channel = self.settings[0]
                return {"lam": rng.uniform(0.4, 1.6, channels if by_channel else ())}
            case "dense":
                each_pixel, out = self.settings
                n = channels if each_pixel else int(np.prod(shapes[self.inputs[0]]))
                return {"w": rng.normal(0, n**-0.5, (n, out)), "b": rng.normal(0, 0.1, out)}
        return {}

    def shape(self, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
        *pixels, channels = shapes[self.inputs[0]]
        match self.kind:
            case "conv":
                _, stride, _, wide = self.settings
                return (*(-(-side // stride) for side in pixels), channels * wide)
            case "pool":
                return (*(side // 2 for side in pixels), channels)
            case "dense":
                each_pixel, out = self.settings
                return (*pixels, out) if each_pixel else (out,)
            case "concat":
                return (*pixels, sum(shapes[i][-1] for i in self.inputs))
        return (*pixels, channels)


@st.composite
def networks(draw: Any) -> list[Op]:
    shapes = [(SIDE, SIDE, CHANNELS)]
    ops = []
    for _ in range(draw(st.integers(1, 8))):
        # Deep rather than broad: mostly the last value.
        source = draw(st.sampled_from([len(shapes) - 1] * 3 + list(range(len(shapes)))))
        *pixels, channels = shapes[source]
        kinds = ["conv", "conv", "norm", "dense"] if pixels else ["norm", "dense"]
        if not (source and ops[source - 1].kind == "neuron"):  # where two are one
            kinds += ["neuron", "neuron"]
        if min(pixels, default=0) > 1:
            kinds.append("pool")
        same = [i for i, s in enumerate(shapes) if s == shapes[source]]
        beside = [i for i, s in enumerate(shapes) if list(s[:-1]) == pixels]
        kinds += ["add"] * (len(same) > 1) + ["concat"] * (channels <= 8)
        kind = draw(st.sampled_from(kinds))
        inputs, settings = (source,), ()
        match kind:
            case "conv":
                groups = draw(st.sampled_from([g for g in (1, 2, channels) if channels % g == 0]))
                side, stride = draw(st.sampled_from([(1, 1), (3, 1), (3, 2)]))
                settings = (side, stride, groups, 2 if channels <= 4 and draw(st.booleans()) else 1)
            case "neuron" | "norm":
                settings = (int(draw(st.booleans())),)
            case "dense":
                settings = (int(bool(pixels) and draw(st.booleans())), draw(st.integers(1, 6)))
            case "add":
                inputs = (source, draw(st.sampled_from(same)))
            case "concat":
                inputs = (source, *draw(st.lists(st.sampled_from(beside), min_size=1, max_size=3)))
        ops.append(Op(kind, inputs, settings, draw(st.integers(0, 2**16))))
        shapes.append(ops[-1].shape(shapes))
    return ops


def _shapes(ops: list[Op]) -> list[tuple[int, ...]]:
    shapes = [(SIDE, SIDE, CHANNELS)]
    for op in ops:
        shapes.append(op.shape(shapes))
    return shapes


def _read_out(ops: list[Op]) -> Op:
    return Op("dense", (len(ops),), (0, 3), 7)


# --- As a JAX function ----------------------------------------------------------------------------


def _as_function(ops: list[Op]) -> Any:
    shapes = _shapes(ops)

    @implicit()
    def network(x: jax.Array) -> jax.Array:
        values = [x]
        for number, op in enumerate(ops, start=1):
            ins = [values[i] for i in op.inputs]
            w = {k: jnp.asarray(v) for k, v in op.weights(shapes).items()}
            # Scopes name neurons, so that they can be found again.
            with jax.named_scope(f"op{number}"):
                values.append(_apply(op, ins, w))
        w = {k: jnp.asarray(v) for k, v in _read_out(ops).weights(shapes).items()}
        return values[-1].reshape(x.shape[0], -1) @ w["w"] + w["b"]

    return network


def _apply(op: Op, ins: list[jax.Array], w: dict[str, jax.Array]) -> jax.Array:
    x = ins[0]
    match op.kind:
        case "conv":
            side, stride, groups, _ = op.settings
            x = jax.lax.conv_general_dilated(
                x,
                w["w"],
                (stride, stride),
                [(side // 2, side // 2)] * 2,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )
            return x + w["b"]
        case "norm":
            return x * w["scale"] + w["shift"]
        case "neuron":
            return clip(jax.nn.relu(x), w["lam"])
        case "pool":
            window = (1, 2, 2, 1)
            return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4
        case "dense":
            each_pixel, _ = op.settings
            return (x if each_pixel else x.reshape(x.shape[0], -1)) @ w["w"] + w["b"]
        case "add":
            return ins[0] + ins[1]
        case "concat":
            return jnp.concatenate(ins, -1)
    raise ValueError(op.kind)


# --- In NumPy -------------------------------------------------------------------------------------


class _Reference:
    """The described network on one image: analog, or one spiking step after the other."""

    def __init__(self, ops: list[Op]) -> None:
        self.ops, self.shapes = ops, _shapes(ops)
        self.potential: dict[int, np.ndarray] = {}

    def run(self, image: np.ndarray, spiking: bool) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        values, spikes = [image], {}
        for number, op in enumerate(self.ops, start=1):
            x, w = values[op.inputs[0]], op.weights(self.shapes)
            match op.kind:
                case "conv":
                    values.append(_convolve(x, w["w"], *op.settings[1:3]) + w["b"])
                case "norm":
                    values.append(x * w["scale"] + w["shift"])
                case "neuron" if not spiking:
                    values.append(np.clip(x, 0, w["lam"]))
                case "neuron":
                    v = self.potential.get(number, 0.0) + x  # Eq. 3
                    fires = v >= w["lam"]  # Eq. 2
                    self.potential[number] = v - fires * w["lam"]
                    spikes[number] = fires
                    values.append(fires * w["lam"])
                case "pool":
                    h, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
                    parts = [x[i:h:2, j:width:2] for i in (0, 1) for j in (0, 1)]
                    values.append(sum(parts) / 4)
                case "dense":
                    each_pixel, _ = op.settings
                    values.append((x if each_pixel else x.ravel()) @ w["w"] + w["b"])
                case "add":
                    values.append(x + values[op.inputs[1]])
                case "concat":
                    values.append(np.concatenate([values[i] for i in op.inputs], -1))
        w = _read_out(self.ops).weights(self.shapes)
        return values[-1].ravel() @ w["w"] + w["b"], spikes


def _convolve(x: np.ndarray, kernel: np.ndarray, stride: int, groups: int) -> np.ndarray:
    side, _, per_group, out = kernel.shape
    edge = side // 2
    padded = np.pad(x, ((edge, edge), (edge, edge), (0, 0)))
    rows, columns = -(-x.shape[0] // stride), -(-x.shape[1] // stride)
    result = np.zeros((rows, columns, out))
    for r in range(rows):
        for c in range(columns):
            window = padded[r * stride : r * stride + side, c * stride : c * stride + side]
            for feature in range(out):
                group = feature // (out // groups)
                part = window[..., group * per_group : (group + 1) * per_group]
                result[r, c, feature] = np.sum(part * kernel[..., feature])
    return result


# --- The comparison -------------------------------------------------------------------------------


SEEDS = st.integers(0, 2**16)


@settings(max_examples=40)
@given(networks(), SEEDS)
def test_conversion_and_simulation_are_exact(ops, seed):
    check(ops, seed)


def check(ops: list[Op], seed: int) -> None:
    """Convert and simulate a network, images drawn from a seed, and compare it with NumPy."""
    images = np.random.default_rng(seed).normal(0.4, 1.0, (2, SIDE, SIDE, CHANNELS))
    with jax.enable_x64(True):
        x = jnp.asarray(images)
        traced = trace(_as_function(ops), x)
        folded = fold(traced)
        graph = normalise(with_norms(folded, {"output": LAM_OUT}))
        logits = np.asarray([_Reference(ops).run(image, spiking=False)[0] for image in images])
        for stage in (traced, folded, graph):
            np.testing.assert_allclose(evaluate(stage, x), logits, rtol=1e-9, atol=1e-9)
        executor = (Scan(), Blocked(5))[seed % 2]  # of which a last block is shorter
        trains = spike_trains(graph, x, TIMESTEPS, Simulation(executor=executor))
        _assert_same_spikes(ops, trains, images)


@settings(max_examples=10)
@given(networks(), SEEDS)
def test_operations_are_counted_as_numpy_does(ops, seed):
    check_operations(ops, seed)


def check_operations(ops: list[Op], seed: int) -> None:
    """Count synaptic operations of a network as it spikes, and event by event in NumPy."""
    images = np.random.default_rng(seed).normal(0.4, 1.0, (2, SIDE, SIDE, CHANNELS))
    batch = {"image": images, "label": np.zeros(2, int), "mask": np.ones(2, bool)}
    with jax.enable_x64(True):
        graph = normalise(with_norms(fold(trace(_as_function(ops), images)), {"output": LAM_OUT}))
        _, activity = measure(graph, [batch], TIMESTEPS)
    expected = np.zeros((TIMESTEPS, 2), int)
    for index, image in enumerate(images):
        reference = _Reference(ops)
        for t in range(TIMESTEPS):
            _, spikes = reference.run(image, spiking=True)
            expected[t, index] = _operations(ops, spikes)
    np.testing.assert_array_equal(activity.by_image, expected)


def _operations(ops: list[Op], spikes: dict[int, np.ndarray]) -> int:
    """Additions that the spikes of a step cause, of one image; the constant image's are none.

    Of each value there are the events that arrive, and those that have met no synapse yet.  What
    the output does not depend on is no part of the network.
    """
    shapes = _shapes(ops)
    live = {len(ops)}
    for number in range(len(ops), 0, -1):
        live |= set(ops[number - 1].inputs) if number in live else set()
    none = np.zeros(shapes[0], int)
    values, counted = [(none, none)], 0
    for number, op in enumerate([*ops, _read_out(ops)], start=1):
        (events, direct), *others = (values[i] for i in op.inputs)
        if number <= len(ops) and number not in live:
            values.append((none, none))
            continue
        if op.kind in ("conv", "pool", "dense"):
            ones = {k: np.ones(v.shape, int) for k, v in op.weights([*shapes, (3,)]).items()}
            if op.kind == "conv":
                events = _convolve(events, ones["w"], *op.settings[1:3])
            elif op.kind == "pool":
                h, width = (side // 2 * 2 for side in events.shape[:2])
                events = sum(events[i:h:2, j:width:2] for i in (0, 1) for j in (0, 1))
            else:
                events = (events if op.settings[0] else events.ravel()) @ ones["w"]
            counted += int(events.sum())
            direct = np.zeros_like(events)
        elif op.kind == "neuron":
            counted += int(direct.sum())
            events = direct = spikes[number].astype(int)
        elif op.kind == "add":
            events, direct = events + others[0][0], direct + others[0][1]
        elif op.kind == "concat":
            both = [(events, direct), *others]
            events, direct = (np.concatenate(part, -1) for part in zip(*both, strict=True))
        values.append((events, direct))
    return counted


def _assert_same_spikes(ops: list[Op], trains: dict[str, jax.Array], images: np.ndarray) -> None:
    trains = {name: np.asarray(train) for name, train in trains.items()}
    numbers = {name: int(name.split("/")[0][2:]) for name in trains if name != "output"}
    for index, image in enumerate(images):
        reference = _Reference(ops)
        v_out = np.zeros(3)
        for t in range(TIMESTEPS):
            current, spikes = reference.run(image, spiking=True)
            v_out = v_out + current
            fires = v_out >= LAM_OUT
            v_out = v_out - fires * LAM_OUT
            np.testing.assert_array_equal(trains["output"][t, index], fires)
            for name, number in numbers.items():
                np.testing.assert_array_equal(trains[name][t, index], spikes[number])
