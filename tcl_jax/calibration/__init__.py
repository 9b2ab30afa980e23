"""Norm-factors λ: trained ones, or found from calibration images by a method of the table `NORMS`.

A method is one class in a module of its own, imported here.
"""

from tcl_jax.calibration.calibrate import calibrate as calibrate
from tcl_jax.calibration.largest import Max as Max
from tcl_jax.calibration.method import NORMS as NORMS
from tcl_jax.calibration.method import NormFactors as NormFactors
from tcl_jax.calibration.method import NormMethod as NormMethod
from tcl_jax.calibration.method import norm_method as norm_method
from tcl_jax.calibration.method import with_norms as with_norms
from tcl_jax.calibration.model_based import ModelBased as ModelBased
from tcl_jax.calibration.percentile import Percentile as Percentile
from tcl_jax.calibration.spike_norm import SpikeNorm as SpikeNorm
from tcl_jax.calibration.trained import Trained as Trained
