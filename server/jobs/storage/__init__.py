"""Storage of jobs and images: the database, the archive, and how long both keep them."""
