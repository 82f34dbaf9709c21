"""The public API: a trained network of either kind on any photo.

In: a checkpoint, photos. Out: `Prediction`s. May import: the rooms from core to mask_rcnn.
"""
