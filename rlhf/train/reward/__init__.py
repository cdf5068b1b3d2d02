"""Reward models trained end to end: the language model itself, a score of everybody's, and directions of taste."""
