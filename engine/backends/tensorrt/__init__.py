"""TensorRT and TensorRT-RTX: plans, engines, CUDA graphs and offloading."""
