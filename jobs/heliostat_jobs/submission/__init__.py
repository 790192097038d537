"""Jobs on a cluster, from a client's point of view: handed over once, found again by name. Start with ``client.py``."""
