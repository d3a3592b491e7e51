"""Compute once: remember results by the content of arguments."""
