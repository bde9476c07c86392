"""Run time: a plan directory and a prompt become a picture, without PyTorch.

Reading order: `pipeline` (the verbs), `manifest` (what a plan directory says), `engine` (what executes a graph),
`backend` (who that is).
"""
