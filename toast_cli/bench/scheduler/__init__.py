"""Which runs a suite needs, which are done, and the workers that do the rest."""
