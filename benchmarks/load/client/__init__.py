"""A client of image servers: cases, endpoints, retries, and the check of the images. Knows no Locust."""
