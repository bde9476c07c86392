"""The worker process, its supervisor and the messages between them."""
