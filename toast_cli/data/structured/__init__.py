"""Structured tasks of VTAB-1k, drawn instead of downloaded."""
