"""The command line: one error boundary, one thin file per verb. Light at import."""
