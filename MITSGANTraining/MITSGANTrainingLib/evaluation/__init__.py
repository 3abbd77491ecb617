"""Evaluation on volumes and targets: every protector against every attacker, each beside its controls.

``evaluate`` runs it from end to end. ``scans``, ``targets``, ``planting`` and ``protections`` say what is measured,
``measure`` does it in worker processes through ``cache``, and ``jury`` says whether an attack succeeds. ``statistics``,
``tables`` and ``figures`` make of it what people read, beside what ``paper`` holds.
"""
