"""Where Celery and offload meet: publishing, executing, results."""
