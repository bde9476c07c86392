"""The number of GPUs for a workload and its objectives, found by simulating the server's own policies."""
