"""How the command line prints results, progress and tables."""
