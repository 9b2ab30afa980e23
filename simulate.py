"""Simulate a run's spiking network: `python simulate.py RUN --timesteps T [--option value ...]`."""

import sys

from tcl_jax.cli.simulate import main

if __name__ == "__main__":
    sys.exit(main())
