"""Policies held against π_ref, π_agg and one another."""
