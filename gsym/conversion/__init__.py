"""Models of PyTorch and PyG on a fixed graph, tied along a group after they were trained.

One function, :func:`gsym.convert`; what it did is a value that prints as a table.
"""

from gsym.conversion.converting import convert
from gsym.conversion.report import Conversion, LeftAlone, Replaced

__all__ = ["Conversion", "LeftAlone", "Replaced", "convert"]
