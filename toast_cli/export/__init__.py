"""Exports: a trained run as files that other programs, and toast itself, can load."""
