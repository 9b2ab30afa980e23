"""Norm-factors λ: those that were trained, or found from calibration images."""
