"""What is done with a run's folder."""
