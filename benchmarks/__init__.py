"""What it costs, measured: each benchmark warms up, prints median and p95, and ends with one line of JSON."""
