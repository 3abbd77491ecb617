"""DICOM CT series: found in a folder (``series``), read (``read``) and written as a derived series (``write``).

pydicom is imported inside functions, because an extension must load without it.
"""
