"""What people run: the commands, and what stands behind each."""
