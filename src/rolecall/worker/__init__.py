"""A process that runs agents: its instances, their leases, and the duties beside them."""
