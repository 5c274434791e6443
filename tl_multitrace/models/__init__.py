"""Models: what they are made of, and when two of them compute the same."""
