"""A watermark with a key: whoever has the key finds forged places, also in another file format.

Every voxel of the body carries +1 or -1 times a small part of the scan's noise; the signs come from the key, the
slice's place in the patient, and the HU around the voxel. What an attacker paints lacks them, and without the key they
are noise that cannot be told from the scanner's. A signature finds every change of a file; the watermark finds what was
painted, in copies that no longer are that file. The default protection carries one with an open key, which everybody
has: it shows forgeries by whoever does not know of it.

=============  =============================================================================
``pattern``    the signs of a slice, from the key, the slice's place and its HU
``embedding``  a scan with its watermark
``whitening``  the filter that takes anatomy and smooth noise out before the signs are sought
``blocks``     where evidence is added up
``sums``       the evidence in each block of a scan
``fading``     what lossy compression, smoothing and other formats left of the signs
``regridding`` copies that were cropped, flipped, resampled or turned, and where they lie on the marked scan's grid
``checking``   where the watermark is and where it should be and is not, and what is left at a place that is asked about
=============  =============================================================================
"""
