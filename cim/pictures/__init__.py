"""What people look at: instances on photos, galleries, charts.

In: photos, instances, numbers. Out: pixels, SVG. May import: the rooms from core to config.
"""
