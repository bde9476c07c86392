"""The graphs as traceable modules: one for each model, and small ones for guidance and inpainting."""
