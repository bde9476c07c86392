"""In-flight batching: `loop` connects `scheduler`, which decides what runs next, with `executor`, which runs it."""
