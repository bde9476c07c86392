"""Build time: a checkpoint becomes ONNX graphs, plans and a manifest.

Reading order: `build` (all steps in order), `checkpoint.files`, `graphs` (`prompt_encoder`, `denoiser`, `vae_decoder`),
`compile.onnx_export`, `compile.tensorrt_build`, `plan_directory`.
"""
