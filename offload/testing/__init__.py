"""Test support for those who write stores.

- `offload.testing.store.StoreSuite`: conformance tests of a store, as a pytest class.
- `offload.testing.stateful.store_machine`: the same with random sequences of calls.
- `offload.testing.processes.ProcessSuite`: conformance tests of stores shared by processes.
"""
