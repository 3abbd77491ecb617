"""Key files: those that hide and those that sign."""
