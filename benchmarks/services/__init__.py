"""Throwaway PostgreSQL, Redis and RabbitMQ servers from Debian's packages, for tests, benchmarks and development."""
