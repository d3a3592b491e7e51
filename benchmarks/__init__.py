"""What offload costs and gains against plain Celery: one module per question."""
