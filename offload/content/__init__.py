"""Values in, references out: manifests, chunks, compression, integrity, the node cache."""
