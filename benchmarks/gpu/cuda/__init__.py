"""The CUDA half of the runtime, driven on a device through kernels of its own instead of TensorRT plans."""
