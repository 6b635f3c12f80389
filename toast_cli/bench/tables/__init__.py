"""Tables, figures and pages of a suite's results."""
