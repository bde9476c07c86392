"""A simulated fleet of worker hosts, with failures and an autoscaler, and its clients."""
