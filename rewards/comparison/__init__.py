"""Reward models held against one another on people and prompts never seen, with controls."""
