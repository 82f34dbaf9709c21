"""The command `cim`: one module a command, and the flow that runs them all.

In: words. Out: exit codes; everything else is the work of the rooms above. May import: the rooms from core to review.
"""
