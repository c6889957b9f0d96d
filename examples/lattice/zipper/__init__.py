"""Zipper: several attribution windows on one backbone, each impression in one of them; see README.md."""
