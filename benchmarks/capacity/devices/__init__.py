"""Seconds that a device takes: from the data sheet of a GPU, or from a measurement."""
