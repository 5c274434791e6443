"""Word lists of the demo grammar, under the name they had; they live in :mod:`tl_multitrace.tasks.corpus`."""

from tl_multitrace.tasks.corpus import *  # noqa: F403
