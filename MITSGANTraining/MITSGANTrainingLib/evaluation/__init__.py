"""Evaluation on volumes and targets: every protector against every attacker, each beside its controls.

``study`` runs it from end to end. ``scans``, ``targets`` and ``protections`` say what is measured, ``measure`` does it
in worker processes through ``cache``, ``statistics``, ``tables`` and ``figures`` make of it what people read, beside
what ``paper`` holds.
"""
