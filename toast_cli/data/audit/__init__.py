"""`toast data check`: unreadable files, leaks between splits, near-duplicates."""
