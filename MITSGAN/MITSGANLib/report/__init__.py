"""Pictures, the demonstration and its page."""
