"""The devices of a run as one mesh, and where on it each array lies."""
