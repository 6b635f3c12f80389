"""Files that toast writes and reads back: run folders, adapters, checkpoints, fingerprints. No pickle."""
