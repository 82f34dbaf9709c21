"""What every other room speaks in: errors, types, regions as atoms, files, photos, parallel stages.

In: arrays and paths. Out: `RegionSet`, `CimError`, the types that flow. May import: no other room.
"""
