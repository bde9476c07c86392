"""Images over HTTP: validation, a queue of jobs, and workers that run `engine`. Knows no tensor library."""
