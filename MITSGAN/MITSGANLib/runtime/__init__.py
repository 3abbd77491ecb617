"""Devices, threads and work in the background."""
