"""Parts of `zimage-bench gpu-check`, and the plans they run on."""
