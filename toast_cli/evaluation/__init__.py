"""Evaluation of finished runs: metrics, attention, comparisons, an LLM judge."""
