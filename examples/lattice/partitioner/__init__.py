"""Partitioner: which portfolios, domains with an objective, share a model; see README.md."""
