"""Run the example's jobs twice, by plain Celery and with offload, and compare."""
