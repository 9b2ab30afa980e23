"""Train JAX networks with trainable clipping layers, make them spiking ones, simulate those."""

from tcl_jax import simulation as simulation
from tcl_jax.clipping import TCL as TCL
from tcl_jax.clipping import clip as clip
from tcl_jax.conversion import convert as convert
from tcl_jax.errors import InputError as InputError
from tcl_jax.report.explain import explain as explain
