"""Images over HTTP: validation, admission and encoding around `engine`. Knows no tensor library."""
