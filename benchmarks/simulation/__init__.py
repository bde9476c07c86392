"""Simulation of servers and fleets under load: the real policies on a clock that jumps. Knows no HTTP."""
