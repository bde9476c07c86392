"""What benchmarks share: clocks, distributions, machines, peers and reports."""
