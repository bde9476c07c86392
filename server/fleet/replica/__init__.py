"""An API replica's side of a fleet: jobs as rows, and clients that wait for them."""
