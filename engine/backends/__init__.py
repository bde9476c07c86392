"""Execution of plans: TensorRT on a GPU, ONNX Runtime on a CPU, and their memory."""
