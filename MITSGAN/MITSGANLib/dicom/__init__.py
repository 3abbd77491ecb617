"""DICOM CT series: found in a folder (``series``), read (``read``) and written as a derived series (``write``).

pydicom is imported inside functions, because an extension must load without it.
"""

from .read import read_series, stack_series
from .series import DicomScan, DicomSeries, choose_series, scan_dicom
from .write import check_series_output, write_series

__all__ = [
    "DicomScan",
    "DicomSeries",
    "check_series_output",
    "choose_series",
    "read_series",
    "scan_dicom",
    "stack_series",
    "write_series",
]
