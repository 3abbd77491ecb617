"""DICOM's own digital signatures (PS3.15)."""
