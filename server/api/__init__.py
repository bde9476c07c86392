"""HTTP dialects: OpenAI's images, tasks, their schemas, errors and access."""
