"""The door: one process per service that takes its clients' requests to its replicas.

It knows the routing table it was given and what its own sockets tell it. It must not know providers, the store,
or why a replica is on the list. Run it with `python -m skyserve.load_balancer`.
"""
