"""`python -m rlhf.evaluation.sessions`: people over several sessions, what is claimed of them and from which answers."""
