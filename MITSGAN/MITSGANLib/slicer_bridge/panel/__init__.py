"""The panel, one file for each of its sections: volume, protect, attack, compare, export, keys, restore_verify.

A section gets the widgets of the ``.ui`` from :class:`~MITSGANLib.slicer_bridge.panel.shared.Panel`. For each button it
says there what pressing does and what has to be there first. ``jobs`` runs one heavy job at a time, ``sentences`` words
what the panel says, ``device_line`` finds out what networks run on, ``comparison_view`` is the side-by-side view.

To add a button: put it into the ``.ui`` with its tool tip, and call ``panel.add_job`` or ``panel.add_control`` in its
section.
"""
