"""Jobs: submission, order, admission, progress and metrics."""
