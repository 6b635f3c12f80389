"""Tasks: head, loss and metrics."""
