"""Frozen classifiers that decide whether an attack succeeded."""
