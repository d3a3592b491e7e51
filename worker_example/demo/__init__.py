"""Run the example's jobs twice, with plain Celery and with offload, and compare them."""
