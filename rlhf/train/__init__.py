"""Training: optimiser, loop, checkpoints, and the trainers."""
