"""Texts: conversations and documents, chat templates, and their loader."""
