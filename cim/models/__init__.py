"""Networks that compute, and nothing else: trunks, RoI features, heads, Mask R-CNN.

In: normalised pixels, boxes, members. Out: features, scores. May import: the rooms from core to storage.
"""
