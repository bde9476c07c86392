"""Image files outside the database: a folder or S3 in its place, and the archive of copies."""
