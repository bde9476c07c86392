"""Clients of every kind, faults and accounts for `zimage-bench soak`."""
