"""The runtime: generates images from a plan directory and prompts, without PyTorch.

Reading order: `pipeline` (encode_prompt, denoise, decode), `plan.manifest` (the contents of a plan directory),
`backends.base` and `backends.memory` (the interfaces to what runs a graph), `scheduler.loop` (many images at once).
"""
