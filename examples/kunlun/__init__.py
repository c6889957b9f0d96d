"""Kunlun on MovieLens-100k: sequences and context in one ranking model, in plain PyTorch. See README.md."""
