"""Photos and what is said of them: folders, VOC, COCO, drawn pictures; masks are parsed in marks alone.

In: photos, tag files, annotation files. Out: `Record`s. May import: core.
"""
