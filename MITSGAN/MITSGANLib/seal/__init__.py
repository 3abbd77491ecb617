"""Seals: a protected scan carries, encrypted, what turns it back into its original, bit for bit.

====================  =======================================================================
``container``         the encrypted, authenticated container
``change``            the compact, exact description of what protection changed
``dicom_original``    what is sealed of a DICOM series: the change and the files' other bytes
``file_original``     what is sealed of a NRRD, NIfTI or MetaImage file
``sealing``           writing a protected scan with its seal, and restoring it
====================  =======================================================================
"""
