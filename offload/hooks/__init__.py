"""Hooks into Celery: publishing, executing, results."""
