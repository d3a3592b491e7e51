"""A store in Redis or Valkey: standalone, TLS, Sentinel, Cluster; server 6.2 or later."""
