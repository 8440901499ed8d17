"""A process that runs agents: its instances, their leases, and its other duties."""
