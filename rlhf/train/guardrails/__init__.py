"""Guardrails that act on rewards in training: penalties on behaviours, hard gates, floors, groups, truth."""
