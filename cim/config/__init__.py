"""The settings, where a run keeps its files, and the one place where both meet constructors.

In: yaml, overrides. Out: data sets, networks, miners, paths. May import: the rooms from core to evaluation.
"""
