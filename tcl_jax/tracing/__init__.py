"""From a JAX function to a graph: its equations read one by one, or refused with their line."""
