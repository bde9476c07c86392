"""The plan directory: manifest, tensor shapes and prepared LoRAs."""
