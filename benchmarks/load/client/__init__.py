"""Requests to image servers: cases, endpoints, retries, and the check of their images. Knows no Locust."""
