"""Where images come from: folders, archives, tables and lists, behind one interface. Start with ``source.py``."""

from heliostat.data.sources.opening import open_source
from heliostat.data.sources.source import FilePlace, Item, ObjectPlace, Place, RefusedItem, Source, Unit

__all__ = ["FilePlace", "Item", "ObjectPlace", "Place", "RefusedItem", "Source", "Unit", "open_source"]
