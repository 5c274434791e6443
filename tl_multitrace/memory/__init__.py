"""Memory: how much there is, where activations are kept, and what to do when it runs out."""
