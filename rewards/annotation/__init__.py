"""What stands behind a recorded answer: an attitude, no attitude, or the way the question was put."""
