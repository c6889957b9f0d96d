"""Lattice: few consolidated models in place of many, on real data; see README.md."""
