"""Small experiments on the digits, without MLflow."""

import torch

from experiments.config.experiment import config_from
from experiments.rounds.rounds import RoundResult, prune_rounds


def config(**changes):
    quick = {"model": "lenet_30_20", "epochs": 3, "retrain_epochs": 2, "rounds": 3, "device": "cpu"}
    return config_from(quick | changes).resolved("digits")


def run(settings, data, after=None, base=None):
    events = prune_rounds(settings, data, after, base)
    return [event for event in events if isinstance(event, RoundResult)]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
