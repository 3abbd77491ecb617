"""The panel, one file for each of its sections.

A section gets the widgets of the ``.ui`` from :class:`~MITSGANLib.slicer_bridge.panel.shared.Panel`. For each button it
says there what pressing does and what has to be there first, by ``panel.add_job`` or ``panel.add_control``. ``jobs``
runs what takes a while in the background, ``sentences`` words what the panel says.
"""
