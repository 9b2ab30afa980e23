"""Labelled images as batches: `load` a data set by name, then iterate over it."""

from tcl_jax.data.dataset import ArraySource as ArraySource
from tcl_jax.data.dataset import DataInfo as DataInfo
from tcl_jax.data.dataset import Dataset as Dataset
from tcl_jax.data.dataset import Source as Source
from tcl_jax.data.jpeg import JpegSource as JpegSource
from tcl_jax.data.pipeline import eval_batches as eval_batches
from tcl_jax.data.pipeline import steps_per_epoch as steps_per_epoch
from tcl_jax.data.pipeline import train_batches as train_batches
from tcl_jax.data.sources import DATASETS as DATASETS
from tcl_jax.data.sources import described as described
from tcl_jax.data.sources import load as load
from tcl_jax.data.standardize import standardize as standardize
