"""Training: configuration in, a run's folder out."""

from tcl_jax.training.checkpoints import Checkpoints as Checkpoints
from tcl_jax.training.loop import Result as Result
from tcl_jax.training.loop import fit as fit
from tcl_jax.training.recorder import CHECKPOINTS as CHECKPOINTS
from tcl_jax.training.recorder import CONFIG as CONFIG
from tcl_jax.training.setup import build_model as build_model
from tcl_jax.training.setup import load_dataset as load_dataset
