"""The CT-GAN attacker (Mirsky et al., USENIX Security 2019), differentiable from output HU to input HU.

``equalization`` holds the histogram look-up table, ``networks`` the 3-D generator and discriminator, ``chain`` the
steps from cutting the cube to the noise touch-up, ``keras_files`` the reader of the authors' published files and
``attacker`` the whole attack on a :class:`~MITSGANLib.scan.volume.CTVolume`.
"""
