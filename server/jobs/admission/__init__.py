"""Admission of jobs and estimates of their ends: limits, rates, measured times and the order of the queue."""
