"""The engine: what a run depends on beside its arguments, and checks before numbers are trusted."""
