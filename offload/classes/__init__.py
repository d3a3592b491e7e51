"""Class registry: versioned, signed code for workers that don't have it.

A producer pushes a class or function once. Messages contain its name and hash. Workers pull exactly
that version, once per process, if their settings allow it.
"""
