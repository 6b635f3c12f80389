"""The command line: one error handler, and one module per command. Imports no heavy package."""
