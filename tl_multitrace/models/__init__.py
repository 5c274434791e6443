"""Models: what they compute with, and what the process around a run must not change in that."""
