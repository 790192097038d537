"""Frozen features in, numbers and pictures out."""
