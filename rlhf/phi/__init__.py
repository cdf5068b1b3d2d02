"""Texts or tokens → φ: encoders, reward functions, classifiers, judges, and the fit of a reward run."""
