"""Sketch: the system a model runs on, chosen with the model; so far its sharding. See README.md."""
