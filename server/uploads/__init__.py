"""Uploaded images: decoded and prepared in a process of their own, which hostile files may break."""
