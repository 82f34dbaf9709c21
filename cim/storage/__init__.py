"""Artefacts on disk: stores of one file per image with a manifest, and the published pickles.

In: regions, clusters, scores by image id. Out: the same again. May import: the rooms from core to datasets.
"""
