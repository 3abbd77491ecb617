"""Seals: a protected scan carries, encrypted, what turns it back into its original, bit for bit.

====================  =======================================================================
``keys``              key files and passphrases
``container``         the encrypted, authenticated container
``change``            the compact, exact description of what protection changed
``dicom_original``    what is sealed of a DICOM series: the change and the files' other bytes
``file_original``     what is sealed of a NRRD, NIfTI or MetaImage file
``sealing``           writing a protected scan with its seal, and restoring it
====================  =======================================================================
"""

from .keys import Key, generate_key, passphrase_key, read_key_file, write_key_file
from .sealing import SEAL_SUFFIX, Restored, check_sealed_output, restore, save_sealed

__all__ = [
    "SEAL_SUFFIX",
    "Key",
    "Restored",
    "check_sealed_output",
    "generate_key",
    "passphrase_key",
    "read_key_file",
    "restore",
    "save_sealed",
    "write_key_file",
]
