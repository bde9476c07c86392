"""The load ladder: users of every rung over HTTP, and the figures of what they got."""
