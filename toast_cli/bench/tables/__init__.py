"""Tables, figures and the HTML page of a suite's results."""
