"""One self-contained page about a run.

In: a run folder. Out: report.html. May import: the rooms from core to prediction.
"""
