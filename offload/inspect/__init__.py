"""Queries by operators: blobs, values, tasks, workers, classes, stores, configuration drift.

The commands and the dashboard show the answers. Texts that came from a store or a worker are data:
whoever shows them escapes them.
"""
