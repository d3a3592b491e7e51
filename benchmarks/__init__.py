"""Cost and gain of offload compared with plain Celery: one module per question."""
