"""Continuation of earlier work: a new run that starts from a model, and a run that is trained for longer."""
