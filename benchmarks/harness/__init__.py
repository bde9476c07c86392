"""Shared parts of the benchmarks: runners, timers, distributions, roofline, reports."""
