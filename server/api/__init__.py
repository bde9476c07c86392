"""HTTP dialects (OpenAI's images API, tasks) with their schemas, errors and access control."""
