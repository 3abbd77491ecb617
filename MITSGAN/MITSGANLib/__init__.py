"""MITSGANLib: protection of CT volumes against generative tampering, as plain Python.

Data flows one way: files -> :class:`~MITSGANLib.scan.volume.CTVolume` -> protection -> CTVolume -> attack -> CTVolume
-> measure -> report, nodes, files. No package imports one above it; a test holds the order.

No module here imports ``qt`` or ``slicer``, ``slicer_bridge`` excepted. Nothing outside the standard library, numpy,
vtk and SimpleITK is imported at file scope: Slicer ships without torch, and an extension must load without it.
"""

__version__ = "0.1.0"
