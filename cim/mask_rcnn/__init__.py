"""Mask R-CNN: trained on pseudo labels, detecting without proposals.

In: labels, photos. Out: a trained network, `Instances`. May import: the rooms from core to labels.
"""
