"""Publishing, reading, and storing from coroutines, without blocking their event loop."""
