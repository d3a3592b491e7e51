"""Registered types: those that apps register, and third-party types that offload registers."""
