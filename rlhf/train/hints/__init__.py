"""Hints in words: what one may do, and the loss it becomes."""
