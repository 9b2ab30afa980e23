"""Simulation of spiking graphs: `state, x -> state, spikes`, and accuracy against latency."""

from tcl_jax.graph import constant_values as constant_values
from tcl_jax.graph.quantise import quantise as quantise
from tcl_jax.simulation.adaptive import calibrate as calibrate
from tcl_jax.simulation.adaptive import decide as decide
from tcl_jax.simulation.adaptive import record as record
from tcl_jax.simulation.coding import Coding as Coding
from tcl_jax.simulation.coding import encode as encode
from tcl_jax.simulation.energy import Activity as Activity
from tcl_jax.simulation.energy import OperationCost as OperationCost
from tcl_jax.simulation.energy import fan_outs as fan_outs
from tcl_jax.simulation.energy import measure as measure
from tcl_jax.simulation.latency import correct_by_latency as correct_by_latency
from tcl_jax.simulation.latency import latency_curve as latency_curve
from tcl_jax.simulation.lowering import lower as lower
from tcl_jax.simulation.neurons import Neurons as Neurons
from tcl_jax.simulation.neurons import fire as fire
from tcl_jax.simulation.readout import Readout as Readout
from tcl_jax.simulation.readout import classify as classify
from tcl_jax.simulation.readout import logits as logits
from tcl_jax.simulation.simulator import State as State
from tcl_jax.simulation.simulator import init_state as init_state
from tcl_jax.simulation.simulator import run as run
from tcl_jax.simulation.simulator import simulate as simulate
from tcl_jax.simulation.simulator import spike_trains as spike_trains
from tcl_jax.simulation.simulator import step as step
