"""What one forward pass with a mask in it takes: what is mixed in where, what is kept, and where a run restarts."""
