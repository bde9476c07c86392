"""Checkpoints in the official layout: files, weights, configurations and LoRAs."""
