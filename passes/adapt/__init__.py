"""Passes that change what the model computes, because the options ask for it. adapting.py lists them in order."""
