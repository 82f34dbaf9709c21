"""The response network (PRM): trained from tags, its peaks, and the first labels they give.

In: photos with tags, regions. Out: `Peaks`, `Clusters`. May import: the rooms from core to pictures.
"""
