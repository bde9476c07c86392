"""The tensors of LoRA files: their keys, and the changes of weights that they stand for."""
