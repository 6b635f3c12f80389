"""What data and tasks agree on about a batch."""

IGNORE_INDEX = -100
"""The label of what is neither learned nor counted: prompts, padding, a sample that only fills a process's share."""

BATCH_METADATA_KEYS = ("index", "view")
"""Are in every batch and for no model: which samples these are, and in which of the fixed ways each was changed."""
