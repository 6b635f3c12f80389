"""Helpers that know nothing of the domain: errors, settings, hashing, atomic files. Every package may import them."""
