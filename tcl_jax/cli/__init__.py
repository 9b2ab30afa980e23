"""Command lines: `train`, `convert` and `simulate`, and what they share."""
