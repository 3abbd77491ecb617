"""Is this copy genuine? Every kind of evidence that a scan holds, weighed into one verdict.

=============  =============================================================================
``placement``  where a copy's voxels lie in what is examined of it
``blocks``     what the blocks look like that evidence is added up in, and which are lung
``noise``      noise that is missing, or of another color than the tissue's around
``whitened``   the lungs after the sharpest filter that a scan's own noise allows
``copies``     tissue that is there twice, and CT-GAN's own noise source
``suspicion``  maps of evidence, each in units of what a scan's own untouched tissue scatters by
``verdict``    evidence, places and verdict
``examiner``   all of it on one scan
=============  =============================================================================
"""
