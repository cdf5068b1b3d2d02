"""What `import rlhf` offers: training, sampling and evaluation in memory, and the records they return."""
