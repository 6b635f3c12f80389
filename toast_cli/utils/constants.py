"""Conventions of batches that data and tasks share, and reserved names."""

IGNORE_INDEX = -100
"""The label that is ignored in losses and metrics: prompts, padding, samples that only fill a process's share."""

BATCH_METADATA_KEYS = ("index", "view")
"""Keys of a batch that are not model inputs: the indices of the samples, and which cached augmentation they have."""

NOTHING_TO_MEASURE = "task.nothing-to-measure"
"""Code of the error of a meter that has no sample."""

OWN_PACKAGE = "toast-tune"
"""The distribution of toast itself: plugins in it are toast's own, all others are by other authors."""

UNNAMED_BACKBONE = "built-in-python"
"""The name, after its family's, of a backbone that a user has built and that no name can build."""

PYTHON_DATA = "python"
"""The name of a data set that was given in Python."""
UNREADABLE_IMAGE = "image.unreadable"
"""Code of the error of an image file that cannot be read."""
