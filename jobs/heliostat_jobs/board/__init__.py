"""The page of a root: its runs, curations, evaluations and pipelines, read only. Start with ``server.py``."""
