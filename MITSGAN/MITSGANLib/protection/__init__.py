"""Prevent: presets, protectors and the networks behind them."""
