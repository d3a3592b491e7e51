"""Which serializer carries which value.

Interface (being built):

    Registry(accept: frozenset[str])   accept: Celery's accepted content types by name
                                       ('json', 'pickle', ...) plus offload_accept
      .encode(value, native: str) -> Payload
      .decode(serializer: str, head, buffers) -> Any
"""
