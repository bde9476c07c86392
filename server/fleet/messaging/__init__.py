"""Messages through the broker: tickets that wake worker hosts, and events."""
