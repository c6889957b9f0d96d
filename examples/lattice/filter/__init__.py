"""Filter: features for many tasks at once, by Pareto fronts of their importances; see README.md."""
