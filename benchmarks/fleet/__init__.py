"""Servers with a stand-in engine, from one process to a fleet, for `zimage-bench scaling` and `fleet-faults`."""
