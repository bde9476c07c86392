"""Jobs: submission, order, storage, workers and metrics."""
