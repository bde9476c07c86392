"""Clients, servers and soak runs for benchmarks over HTTP."""
