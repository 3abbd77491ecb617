"""Reading and writing scans; :mod:`.storage` is the one door."""
