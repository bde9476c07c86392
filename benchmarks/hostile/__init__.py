"""Image files that are made to break what reads them."""
