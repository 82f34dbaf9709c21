"""Labels in the formats of other programs: a writer and a reader each (``cim.labels.formats.table``)."""
