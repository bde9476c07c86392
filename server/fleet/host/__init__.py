"""A worker host: it claims jobs for the devices of one machine."""
