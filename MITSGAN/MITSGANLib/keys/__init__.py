"""Key files, to seal with and to sign with."""
