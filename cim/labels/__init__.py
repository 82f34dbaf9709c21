"""Pseudo labels: written from instances, read from anywhere, chosen among.

In: instances, COCO json. Out: COCO json. May import: the rooms from core to inference.
"""
