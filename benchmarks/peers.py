"""A spiking graph as a PyTorch module of another library's integrate-and-fire neurons.

Every library gets what its documentation recommends for inference, and the same head start as
ours: currents that do not change over time are computed once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import sinabs.activation
import sinabs.layers
import snntorch
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron

from tcl_jax import graph as g
from tcl_jax.conversion import Graph


class _SnnTorch(torch.nn.Module):
    """snnTorch hands the membrane potential to its caller."""

    def __init__(self):
        super().__init__()
        self.neuron = snntorch.Leaky(beta=1.0, reset_mechanism="subtract", reset_delay=False)
        self.potential = None

    def forward(self, current: torch.Tensor) -> torch.Tensor:
        if self.potential is None:
            self.potential = torch.zeros_like(current)
        spikes, self.potential = self.neuron(current, self.potential)
        return spikes


def _neuron(library: str, mode: str, dtype: torch.dtype) -> torch.nn.Module:
    match library:
        case "spikingjelly":
            return neuron.IFNode(v_threshold=1.0, v_reset=None, step_mode=mode[0])
        case "sinabs":
            return sinabs.layers.IAF(
                spike_threshold=torch.tensor(1.0, dtype=dtype, device=DEVICE),
                spike_fn=sinabs.activation.SingleSpike,
                reset_fn=sinabs.activation.MembraneSubtract(),
            )
        case "snntorch":
            return _SnnTorch()
    raise ValueError(library)


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Ours are accurate to float32 too.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


class Network(torch.nn.Module):
    """The graph; `forward` maps images to the output neurons' spike counts.

    In mode ``ann`` it is the network that the graph is of, and gives logits.  In mode ``single``
    the network is run once a step; in ``multi`` each layer sees all steps at once, its affine maps
    with the steps as part of the batch.  It computes in the graph's type, or in a given one.
    """

    def __init__(
        self, graph: Graph, library: str, mode: str, layout: str, batch: int, dtype: str = ""
    ):
        super().__init__()
        self.mode, self.batch, self.library = mode, batch, library
        self.graph = graph
        self.dtype = getattr(torch, dtype or np.dtype(graph.dtype).name)
        self.layout = torch.channels_last if layout == "channels_last" else torch.contiguous_format
        self.layers = torch.nn.ModuleDict()
        self.scales: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for node in graph.nodes:
            layer = _layer(node.op)
            if isinstance(node.op, g.Population | g.Output):
                # Else equal weights would not mean equal spikes.
                assert np.all(np.asarray(node.op.threshold) == 1)
                layer = None if mode == "ann" else _neuron(library, mode, self.dtype)
            if layer is not None:
                self.layers[_key(node)] = layer
            if isinstance(node.op, g.Scale):
                scale, shift = (_vector(v).to(self.dtype) for v in (node.op.scale, node.op.shift))
                self.scales[node.name] = scale, shift
        self.eval().to(DEVICE, self.dtype, memory_format=self.layout)

    @torch.inference_mode()
    def forward(self, images: np.ndarray, timesteps: int = 1) -> torch.Tensor:
        x = torch.from_numpy(images).to(DEVICE, self.dtype).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=self.layout)
        for module in self.modules():
            if isinstance(module, neuron.IFNode):
                module.reset()
            elif isinstance(module, sinabs.layers.IAF):
                module.reset_states()
            elif isinstance(module, _SnnTorch):
                module.potential = None
        fixed = self._fixed(x)
        if self.mode == "multi":
            return self._pass(fixed, timesteps)
        return sum(self._pass(fixed, 1) for _ in range(timesteps))

    def _fixed(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        def affine(node: g.Node[g.Op], *values: Any) -> Any:
            return None if any(v is None for v in values) else self._affine(node, *values)

        values = g.walk(self.graph, {self.graph.input.name: x}, affine, lambda node, z: None)
        return {name: value for name, value in values.items() if value is not None}

    def _pass(self, fixed: dict[str, torch.Tensor], steps: int) -> torch.Tensor:
        repeated: dict[str, torch.Tensor] = {}
        for node in self.graph.nodes:  # of what is fixed, what the rest reads
            for name in (self.graph.nodes[i].name for i in node.inputs):
                if node.name not in fixed and name in fixed and name not in repeated:
                    value = fixed[name]
                    repeated[name] = value.repeat(steps, *[1] * (value.ndim - 1))

        def population(node: g.Node[g.Population | g.Output], z: torch.Tensor) -> torch.Tensor:
            if self.mode == "ann":
                return z.clamp(0, 1) if isinstance(node.op, g.Population) else z
            # sinabs gives float32 spikes in float64, too.
            return self._fire(self.layers[_key(node)], z, steps).to(z.dtype)

        values = g.walk(self.graph, fixed | repeated, self._affine, population)
        return values[self.graph.output.name].unflatten(0, (steps, self.batch)).sum(0)

    def _fire(self, layer: torch.nn.Module, current: torch.Tensor, steps: int) -> torch.Tensor:
        if self.mode == "single":
            return layer(current)
        by_step = current.unflatten(0, (steps, self.batch))
        if self.library == "sinabs":  # batch first
            return layer(by_step.transpose(0, 1)).transpose(0, 1).flatten(0, 1)
        return layer(by_step).flatten(0, 1)

    def _affine(self, node: g.Node[g.Op], *inputs: torch.Tensor) -> torch.Tensor:
        x, op = inputs[0], node.op
        match op:
            case g.Conv() | g.Dense():
                return self.layers[_key(node)](x)
            case g.Scale():
                scale, shift = (self._against(v, x) for v in self.scales[node.name])
                return x * scale + shift
            case g.Pool():
                x = F.pad(x, [n for pair in reversed(op.padding[:2]) for n in pair])
                size = op.window[0] * op.window[1]
                return F.avg_pool2d(x, op.window[:2], op.strides[:2]) * (float(op.factor) * size)
            case g.Sum():
                return x.sum([{0: 2, 1: 3, 2: 1}[a] for a in op.axes]) * float(op.factor)
            case g.Reshape():
                x = x.permute(0, 2, 3, 1) if x.ndim == 4 else x
                return x.reshape(x.shape[0], *op.shape)
            case g.Add():
                return x + inputs[1]
        raise TypeError(f"no PyTorch form of {type(op).__name__}")

    @staticmethod
    def _against(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return vector.reshape(-1, *[1] * (x.ndim - 2)) if vector.ndim else vector


def _vector(value: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(value)).to(DEVICE)


def _key(node: g.Node[g.Kind]) -> str:
    return node.name.replace(".", "_")


def _layer(op: g.Kind) -> torch.nn.Module | None:
    match op:
        case g.Conv():
            kernel = np.asarray(op.kernel).transpose(3, 2, 0, 1)
            layer: Any = torch.nn.Conv2d(
                kernel.shape[1] * op.groups,
                kernel.shape[0],
                kernel.shape[2:],
                op.strides,
                dilation=op.dilation,
                groups=op.groups,
            )
            pads = [n for pair in reversed(op.padding) for n in pair]
            if op.padding[0][0] == op.padding[0][1] == op.padding[1][0] == op.padding[1][1]:
                layer.padding = op.padding[0][0], op.padding[1][0]
                module: torch.nn.Module = layer
            else:
                module = torch.nn.Sequential(torch.nn.ZeroPad2d(pads), layer)
        case g.Dense():
            kernel = np.asarray(op.kernel).T
            module = layer = torch.nn.Linear(kernel.shape[1], kernel.shape[0])
        case _:
            return None
    bias = np.zeros(kernel.shape[0], np.float32) if op.bias is None else np.asarray(op.bias)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
        layer.bias.copy_(torch.from_numpy(np.broadcast_to(bias, kernel.shape[:1]).copy()))
    return module


def runner(
    graph: Graph, library: str, variant: str, batch: int
) -> Callable[[np.ndarray, int], np.ndarray]:
    """From images and T to the output neurons' spike counts, by another library."""
    mode, layout, *dtype = variant.split("/")
    network = Network(graph, library, mode, layout, batch, *dtype)
    return lambda images, timesteps: network(images, timesteps).float().cpu().numpy()
