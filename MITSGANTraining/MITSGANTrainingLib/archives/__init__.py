"""Whole archives: protect, restore and take stock of many studies."""
