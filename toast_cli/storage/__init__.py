"""What is written to disk and read back: run folders, adapters, checkpoints, fingerprints. No pickle."""
