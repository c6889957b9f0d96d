"""Models in plain PyTorch; nothing in them knows of loka."""
