"""How long a run is, once its data are known: passes over them, shares and rows as numbers of steps and rows."""

import dataclasses
import math
from typing import Any, TypeVar

from rewards.errors import UserError
from rlhf.mesh import place
from rlhf.policy import store as policy_store
from rlhf.policy.packing import PackedRows
from rlhf.train import memory

Config = TypeVar("Config")
ROWS = 8  # of an optimiser step, where train.batch_rows is left open


def settled(config: Config, base: policy_store.Base, packed: PackedRows) -> Config:
    """The configuration of supervised or preference training with `batch_rows`, `steps` and `warmup_steps` as numbers."""
    given: Any = config
    train = given.train
    if train.batch_rows is None:
        wanted = ROWS
        while wanted > 1 and wanted > packed.tokens.shape[0]:  # few rows: no step visits one twice
            wanted //= 2
        wanted = place.multiple(wanted)
        rows = place.multiple(memory.rows_that_fit(given, base, packed, wanted))
        train = dataclasses.replace(train, batch_rows=rows, accumulation_steps=max(1, wanted // rows))
        given = dataclasses.replace(given, train=train)
    memory.check_pass(given)
    return in_steps(given, packed.tokens.shape[0], train.batch_rows * train.accumulation_steps)


def in_steps(config: Config, num_rows: int, per_step: int, updates: int = 1) -> Config:
    """The configuration with `train.steps` in the place of epochs and `optimizer.warmup_steps` in that of a share.

    Args:
      num_rows: rows (or prompts) of the data. per_step: how many a step visits. updates: optimiser steps of a step.
    Raises:
      UserError: the warm-up is as long as the run.
    """
    given: Any = config
    train, optimizer = given.train, given.optimizer
    steps = train.steps
    if steps is None:
        steps = max(1, math.ceil(train.epochs * num_rows / per_step))
        train = dataclasses.replace(train, steps=steps, epochs=None)
    if optimizer.warmup_share:
        warm = round(optimizer.warmup_share * steps * updates)
        optimizer = dataclasses.replace(
            optimizer, warmup_steps=min(warm, steps * updates - 1), warmup_share=0.0
        )
    if optimizer.warmup_steps >= steps * updates:
        raise UserError(
            f"optimizer.warmup_steps {optimizer.warmup_steps}: train.epochs {given.train.epochs:g} of this data are "
            f"{steps * updates} steps; lower it, or give optimizer.warmup_share"
        )
    return dataclasses.replace(given, train=train, optimizer=optimizer)


def num_steps(config: Any) -> int:
    """Optimiser steps of a settled run."""
    assert config.train.steps is not None, "the length is settled once the data are known"
    return config.train.steps


def rows_a_step(config: Any) -> int:
    """Rows that an optimiser step of a settled run visits."""
    assert config.train.batch_rows is not None, "settled with the length"
    return config.train.batch_rows * config.train.accumulation_steps
