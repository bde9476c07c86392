"""Parts of `zimage-bench gpu-check`: their table, their processes, their report, and a room for each subject."""
