"""Many machines: API replicas and worker hosts that share a database, and a broker that wakes them."""
