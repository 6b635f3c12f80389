"""Many runs as one experiment: suites, their ledger, their workers, and tables of what came out."""
