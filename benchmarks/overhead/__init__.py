"""HTTP clients, the engine alone and the soak test for `zimage-bench http`."""
