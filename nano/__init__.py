"""Small models in the official Z-Image layout, for tests and demos without 33 GB of weights."""
