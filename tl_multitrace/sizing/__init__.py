"""What fits: the batch size and the places of what is kept, from a limit, a calibration and what ran out before."""
