"""Build time: a checkpoint becomes ONNX graphs, plans and a manifest.

Reading order: `build` (the whole line), `checkpoint`, the three graphs (`prompt_encoder`, `denoiser`,
`vae_decoder`), `onnx_export`, `tensorrt_build`, `plan_directory`.
"""
