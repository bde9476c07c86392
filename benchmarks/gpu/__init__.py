"""Parts of `zimage-bench gpu-check`, and the plans that they run on."""
