"""Train a network with trainable clipping layers: `python train.py PRESET [--option value ...]`."""

import sys

from tcl_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
