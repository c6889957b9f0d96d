"""loka's operators: one file an op, each with its reference, which is its specification, its fake, its CPU path and
the oracle of its tests. Importing a file registers its op with torch.library under the namespace `loka`."""
