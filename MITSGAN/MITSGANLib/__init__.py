"""MITSGANLib: protection of CT volumes against generative tampering, as plain Python.

Data flows one way: files -> :class:`~MITSGANLib.volume.CTVolume` -> protector -> CTVolume -> attacker -> CTVolume ->
metrics and heatmaps -> files. No module here imports ``qt`` or ``slicer`` (``slicer_bridge`` excepted), and nothing
outside the standard library, numpy, vtk and SimpleITK is imported at file scope, because Slicer ships without torch,
scikit-image and lpips and an extension must load without them.
"""

__version__ = "0.1.0"
