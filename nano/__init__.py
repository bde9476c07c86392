"""Small models in the official Z-Image layout: real tests and a real demo without 33 GB of weights."""
