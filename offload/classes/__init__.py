"""The class registry: code that workers do not have, by name and hash, versioned and signed.

A producer pushes a class or function once; messages carry its name and hash; workers pull exactly
that version, once per process, if their operator lets them.
"""
