"""Hashes of classes and functions: they change with behavior, and with nothing else."""
