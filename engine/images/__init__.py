"""Image files: PNG, JPEG and WebP, and the metadata in them."""
