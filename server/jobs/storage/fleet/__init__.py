"""The store as a fleet shares it: claims, leases and worker hosts."""
