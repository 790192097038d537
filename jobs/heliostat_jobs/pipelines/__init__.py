"""Pipelines: stages that follow one another on one cluster, each started exactly once per attempt."""
