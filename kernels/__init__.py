"""loka's operators, a folder a family. An op's file holds its reference: the specification, the fake, the CPU path and
the oracle of its tests. Importing the file registers the op with torch.library under the namespace `loka`."""
