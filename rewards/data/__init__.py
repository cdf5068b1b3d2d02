"""Preference data: files in, checked `rewards.types.Preferences` out; splits, checks and the shipped sets."""
