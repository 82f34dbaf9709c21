"""Numbers: COCO results and ground truth, average precision, diagnosis, metrics.json.

In: instances, annotated masks. Out: rows of numbers. May import: the rooms from core to engine.
"""
