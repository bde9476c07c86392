"""Benchmarks of `zimage-bench`. Each warms up, prints medians and percentiles, and ends with one line of JSON."""
