"""What data and tasks agree on about labels."""

IGNORED = -100
"""The label of what is neither learned nor counted: prompts, padding, a sample that only fills a process's share."""
