"""Rewards for electricity contracts in words, with TRL's signature: what a text promises, read off by pattern.

An example of columns of one's own: configs/columns/rewards.yaml names these functions.
"""

import re

from rlhf.phi.columns.items import text_of


def cheapness(completions, **columns):
    """Minus the price in cents per kWh; of time-of-day and seasonal prices the mean."""
    offers = [text_of(completion).rpartition(", with")[0] for completion in completions]
    found = [[float(cents) for cents in re.findall(r"\d+(?:\.\d+)?", offer)] for offer in offers]
    return [-sum(cents) / len(cents) if cents else None for cents in found]


def freedom(completions, **columns):
    """Minus the years one is bound; without a contract 0."""
    found = [re.search(r"(\d+)-year contract", text_of(completion)) for completion in completions]
    return [-float(years[1]) if years else 0.0 for years in found]


def local(completions, **columns):
    """1 for the local utility."""
    return [float("local utility" in text_of(completion)) for completion in completions]


def well_known(completions, **columns):
    """1 for a well-known company."""
    return [float("well-known" in text_of(completion)) for completion in completions]


def fixed_price(completions, **columns):
    """1 for a price that does not change with the hour or the season."""
    return [float("fixed price" in text_of(completion)) for completion in completions]
