"""What data and tasks agree on about a batch."""

IGNORED = -100
"""The label of what is neither learned nor counted: prompts, padding, a sample that only fills a process's share."""

BOOKKEEPING = ("index", "view")
"""Are in every batch and for no model: which samples these are, and in which of the fixed ways each was changed."""
