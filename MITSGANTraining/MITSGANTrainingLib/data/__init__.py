"""Data sets, cubes, nodules and the sample scan."""
