"""Many machines: API replicas and worker hosts that share a broker and a database."""
