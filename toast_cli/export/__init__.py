"""Export of runs to files for toast and other programs, and import of the authors' checkpoints."""
