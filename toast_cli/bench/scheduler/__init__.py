"""The runs of a suite, their state in the ledger, and the workers that make them."""
