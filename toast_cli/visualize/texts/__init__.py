"""Texts that are coloured by attention: numbers per token, and pages."""
