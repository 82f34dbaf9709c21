"""Miners (CIM, MIST, OICR, PCL), their steps, and the losses that learn from what they mine.

In: scores, overlaps, tags. Out: `PseudoLabels`, named losses. May import: the rooms from core to proposals.
"""
