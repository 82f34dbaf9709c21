"""Photos and what is said of them: folders, VOC, COCO, drawn pictures; masks are never parsed here.

In: photos, tag files, annotation files. Out: `Record`s. May import: core.
"""
