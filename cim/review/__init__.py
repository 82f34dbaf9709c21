"""What a person says of the masks of a run, on one local page.

In: a run folder. Out: corrections, a file that says what is known. May import: the rooms from core to report.
"""
