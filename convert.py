"""Convert a trained network into a spiking one: `python convert.py RUN [--option value ...]`."""

import sys

from tcl_jax.cli.convert import main

if __name__ == "__main__":
    sys.exit(main())
