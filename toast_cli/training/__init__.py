"""The training loop, its schedule and evaluation, and the run that contains them."""
