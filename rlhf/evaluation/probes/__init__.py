"""Probes of a policy: biases, flattery, pressure, profiles, opinions, per kind of person; `chorus probe`."""
