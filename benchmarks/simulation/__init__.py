"""Discrete-event simulation of servers and fleets under load: the real policies on a clock that jumps. Knows no HTTP.

`scenario` describes what is simulated, and `simulate` runs it. `embedded` is one `zimage-serve` with its workers, pass
by pass. `fleet` is replicas, worker hosts and their devices, coarser where there are thousands of them. Both let time
pass between the decisions of `engine.scheduler` and `server.jobs`.
"""
