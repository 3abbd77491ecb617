"""Signatures over scans, and what was changed since: Ed25519 manifests, and DICOM's own digital signatures.

A manifest (``manifest``) survives another format, another compression and another order of files, and says where a scan
was changed, to a tile of 32 x 32 pixels. ``digital_signature`` is what DICOM itself knows: one image, one encoding.

A signature proves that a scan is as its signer left it. It does not prove that it was genuine then, and it cannot tell
one whole signed scan from another: whoever asks for a patient's scan must also see that it is that patient's.
"""

from .envelope import ManifestError
from .keys import load_public_key, load_signing_key, new_signing_key, save_signing_key
from .manifest import Manifest, SignedManifest, manifest_path, read_manifest_file
from .scan import read_scan, read_scan_to_verify
from .signing import Signers, sign_scan, signed_output
from .verification import MAP_VALUES, Finding, Verification, find_manifest, manifest_within, verify_scan

__all__ = [
    "MAP_VALUES",
    "Finding",
    "Manifest",
    "ManifestError",
    "SignedManifest",
    "Signers",
    "Verification",
    "find_manifest",
    "load_public_key",
    "load_signing_key",
    "manifest_path",
    "manifest_within",
    "new_signing_key",
    "read_manifest_file",
    "read_scan",
    "read_scan_to_verify",
    "save_signing_key",
    "sign_scan",
    "signed_output",
    "verify_scan",
]
