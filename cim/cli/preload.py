"""What the server of :mod:`cim.cli.worker` imports before it forks: the stages of the flow, with all their libraries,
those too that a stage imports only when it comes to need them."""
# ruff: noqa: F401

import gc

import faster_coco_eval
import matplotlib.figure
import PIL.Image
import scipy.sparse
import tensorboard.compat.proto.event_pb2
import tensorboard.summary.writer.record_writer

import cim.cli.judge.evaluate
import cim.cli.judge.report
import cim.cli.judge.retrieve
import cim.cli.judge.score
import cim.cli.judge.visualize
import cim.cli.learn.labels
import cim.cli.learn.prm
import cim.cli.learn.refine
import cim.cli.learn.scenes
import cim.cli.learn.train
import cim.cli.prepare.draw
import cim.cli.prepare.proposals
import cim.cli.share.export
import cim.cli.share.predict
import cim.cli.share.threshold

PIL.Image.init()
gc.freeze()  # so that collections in the stages neither walk through all of this nor copy its pages
