"""How far two scans are apart, and what one attack did."""
