"""Training: one readable loop, its schedule, evaluation, and the run around them."""
