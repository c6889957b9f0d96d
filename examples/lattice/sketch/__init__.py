"""Sketch: a size and its sharding, chosen together for the system that the model runs on; see README.md."""
