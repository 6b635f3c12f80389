"""Warnings in the closing table of a run: classes that the headline hides, and a loss that had not settled."""
