"""In-flight batching: which images share the next forward pass, and running it."""
