"""Encryption at rest: keys, the sealed form of small records, and the encrypted form of blobs."""
