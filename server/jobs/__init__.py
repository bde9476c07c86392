"""Jobs: admission, order, storage and metrics."""
