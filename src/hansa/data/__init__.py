"""Data of many clients: sources, partitions, splits, features. Nothing here is pooled that need not be."""

from hansa.data.describe import Description, describe
from hansa.data.loading import load
from hansa.data.sources import Source, listing

__all__ = ["Description", "Source", "describe", "listing", "load"]
