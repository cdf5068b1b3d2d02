"""φ and the population: likelihood, gauge, prior, the joint fit, one person's posterior, a reward run on disk."""
