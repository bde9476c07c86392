"""From modules to plans: ONNX, TensorRT, profiles, targets and parity."""
