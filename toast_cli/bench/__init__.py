"""Suites of runs: the ledger that tracks them, the workers that make them, and the tables of their results."""
