"""Candidate masks: our grouping, COB, run lengths, Segment Anything; and how good they are.

In: a photo or a file. Out: `RegionSet`. May import: the rooms from core to models.
"""
