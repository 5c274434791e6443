"""What the engine checks before it trusts numbers: identity, metrics, precision."""
