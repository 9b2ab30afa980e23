"""What a spiking network is: a graph of affine operations with populations of neurons between."""

from tcl_jax.graph.graph import SpikingGraph as SpikingGraph
from tcl_jax.graph.graph import affine as affine
from tcl_jax.graph.graph import check_batch as check_batch
from tcl_jax.graph.graph import evaluate as evaluate
from tcl_jax.graph.graph import images as images
from tcl_jax.graph.graph import precision as precision
from tcl_jax.graph.graph import shapes as shapes
from tcl_jax.graph.nodes import KINDS as KINDS
from tcl_jax.graph.nodes import Add as Add
from tcl_jax.graph.nodes import Concat as Concat
from tcl_jax.graph.nodes import Conv as Conv
from tcl_jax.graph.nodes import Dense as Dense
from tcl_jax.graph.nodes import Input as Input
from tcl_jax.graph.nodes import Neuron as Neuron
from tcl_jax.graph.nodes import Node as Node
from tcl_jax.graph.nodes import Output as Output
from tcl_jax.graph.nodes import Pad as Pad
from tcl_jax.graph.nodes import Pool as Pool
from tcl_jax.graph.nodes import Quantise as Quantise
from tcl_jax.graph.nodes import Reshape as Reshape
from tcl_jax.graph.nodes import Scale as Scale
from tcl_jax.graph.nodes import Slice as Slice
from tcl_jax.graph.nodes import Sum as Sum
from tcl_jax.graph.nodes import Transpose as Transpose
from tcl_jax.graph.nodes import free as free
from tcl_jax.graph.nodes import unknown as unknown
