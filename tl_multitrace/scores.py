"""Where :class:`Score` stood in 0.1."""

from tl_multitrace.records.stats import Score

__all__ = ["Score"]
