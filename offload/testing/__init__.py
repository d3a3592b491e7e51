"""What users of offload may import to test their own stores and apps.

- `offload.testing.store.StoreSuite`: what every store must do, as a pytest class.
- `offload.testing.stateful.store_machine`: the same by random sequences of calls.
- `offload.testing.processes.ProcessSuite`: what stores shared by processes must do.
"""
