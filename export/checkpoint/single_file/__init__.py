"""Single files in place of the official folders: their parts, the VAE's original keys, and the configs that follow."""
