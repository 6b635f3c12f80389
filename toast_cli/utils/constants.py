"""Conventions of batches that data and tasks share."""

IGNORE_INDEX = -100
"""The label that is ignored in losses and metrics: prompts, padding, samples that only fill a process's share."""

BATCH_METADATA_KEYS = ("index", "view")
"""Keys of a batch that are not model inputs: the indices of the samples, and which cached augmentation they have."""

NOTHING_TO_MEASURE = "task.nothing-to-measure"
"""Code of the error of a meter that has no sample."""
