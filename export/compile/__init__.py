"""Steps from graph modules to plans: ONNX, TensorRT, profiles, targets, parity and previews."""
