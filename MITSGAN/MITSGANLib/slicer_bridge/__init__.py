"""All of the library that imports ``slicer``: what the module does with volume nodes, and what it shows.

A module's logic takes the functions of ``operations``, ``examine`` and ``export`` as its methods, see
:func:`~MITSGANLib.slicer_bridge.operations.operation`. Underneath, ``volumes`` exchanges volume nodes and
:class:`~MITSGANLib.scan.volume.CTVolume`, ``origin`` tells where a node comes from, and ``layout`` says what the views
show. Only ``reports`` and ``panel``, the sections of the module's panel, import ``qt``.
"""
