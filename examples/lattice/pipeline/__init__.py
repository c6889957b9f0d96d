"""The whole way from portfolios to one consolidated model; `python -m examples.lattice run`, see README.md."""
