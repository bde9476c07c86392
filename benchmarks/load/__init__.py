"""HTTP clients, servers and the soak test for `zimage-bench http`."""
