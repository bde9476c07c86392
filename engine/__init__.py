"""Run time: a plan directory and a prompt become an image, without PyTorch.

Reading order: `pipeline` (the verbs), `manifest` (what a plan directory says), `engine` (what executes a graph),
`backend` (who that is).
"""
