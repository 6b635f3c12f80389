"""Settings of training that are `auto`: what toast chooses, before the run that uses the numbers."""
