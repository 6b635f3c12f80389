"""Estimates before a run: memory, throughput and the cost of each method."""
