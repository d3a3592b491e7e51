"""Counters: count events in each process, keep the counts in the store, and report them."""
