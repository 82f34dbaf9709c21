"""From a trained network to instances: scores, selection, averaging, detections, oracle, PRM retrieval.

In: networks, photos, regions. Out: `Instances`. May import: the rooms from core to training.
"""
