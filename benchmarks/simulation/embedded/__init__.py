"""A simulated `zimage-serve` with its workers, and its clients."""
