"""Instances that a person marked, in the files of the tools that people mark with: `Given`, and from it `Known`.

These are what a user says is known of training photos (``data.known``), masks included; what results are judged by
(``data.val_annotations``) never comes here.
"""
