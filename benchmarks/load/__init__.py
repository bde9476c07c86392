"""Load tests of image servers over HTTP: users or arrivals in rungs, with a check of every image."""
