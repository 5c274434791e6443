"""What outlives a call: results cached by content, states of a loop, and checkpoints of a run."""
