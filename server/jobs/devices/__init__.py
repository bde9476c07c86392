"""Delivery of jobs to the workers of all devices."""
