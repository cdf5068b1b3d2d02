"""What a run's metrics say about what went wrong."""
