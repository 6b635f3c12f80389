"""Text data: conversations, documents, chat templates and loaders."""
