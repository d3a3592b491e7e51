"""Publish, read, and store from coroutines without blocking their event loop."""
