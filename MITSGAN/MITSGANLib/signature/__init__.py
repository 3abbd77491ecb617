"""Signatures over scans, and what was changed since: Ed25519 manifests, and DICOM's own digital signatures.

A manifest (``manifest``) survives another format, another compression and another order of files, and says where a scan
was changed, to a tile of 32 x 32 pixels. ``digital_signature`` is what DICOM itself knows: one image, one encoding.

A signature proves that a scan is as its signer left it. It does not prove that it was genuine then, and it cannot tell
one whole signed scan from another: whoever asks for a patient's scan must also see that it is that patient's.
"""
