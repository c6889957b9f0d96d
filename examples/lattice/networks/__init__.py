"""Lattice Networks: sequences and features of all domains in one backbone, one small head a task; see README.md."""
