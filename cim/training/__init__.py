"""CIM training: samples, kept features, the step, pictures of what is mined.

In: photos, regions, clusters, tags. Out: a trained CIM network. May import: the rooms from core to prm.
"""
