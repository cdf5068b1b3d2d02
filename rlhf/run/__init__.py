"""What every run has: configuration, directory, metrics, progress, signals."""
