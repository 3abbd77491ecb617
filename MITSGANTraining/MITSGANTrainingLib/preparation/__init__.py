"""From folders of CT and tables of findings to cached training samples: the work behind ``mitsgan prepare``.

``discovery`` finds the scans, ``tables``, ``readings`` and ``segmentations`` read what is known of them, ``matching``
brings both together, ``cutting`` takes the samples, ``splitting`` divides the patients, and ``run`` does it all.
"""
