"""The one training loop of every network: loader, updates, checkpoints, logging, processes.

In: samples by number, a step. Out: `final.pth`, `log.jsonl`. May import: the rooms from core to mining.
"""
