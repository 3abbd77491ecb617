"""All of the library that imports ``slicer``: what the module does with volume nodes, and what it shows.

What it does: ``operations`` protects, attacks, compares and reports, ``export`` writes protected volumes, sealed and
signed, ``restore`` gives back originals, ``verify`` checks signatures, ``watermarks`` makes and checks watermarks. A
module's logic takes these functions as its methods, see :func:`~MITSGANLib.slicer_bridge.operations.operation`.

What it needs for that: ``volumes`` exchanges volume nodes and :class:`~MITSGANLib.scan.volume.CTVolume`, ``inspection``
says whether a node looks like CT, ``targets`` handles the clicked point, ``dicom_source`` and ``scan_on_disk`` find the
files of a node, ``key_files`` opens keys, ``privacy`` keeps paths out of errors, ``packages`` installs.

What it shows: ``differences`` makes heatmaps, ``change_map`` maps of changes, ``tables`` the metrics table and the
plot, ``comparison`` all of a comparison together, ``layout`` the views. ``self_test`` is the module's test within
Slicer. Only ``panel``, the sections of the module's panel, imports ``qt``.
"""
