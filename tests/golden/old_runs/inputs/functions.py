"""Rewards of `ppo_columns.yaml`, and jittable ones."""

import jax.numpy as jnp


def items(completions):
    return [float(text.split().count("item")) for text in completions]


def words(completions):
    return [0.3 * len(text.split()) for text in completions]


def jit_sum(completion_tokens, completion_mask):
    return 0.01 * jnp.sum(completion_tokens * completion_mask, axis=1).astype(jnp.float32)


def jit_first(completion_tokens):
    return 0.1 * completion_tokens[:, 0].astype(jnp.float32)
