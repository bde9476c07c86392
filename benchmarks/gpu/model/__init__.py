"""The checked model: its weights, and its numerics and speed in PyTorch."""
