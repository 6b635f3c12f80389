"""Language models on the tasks of lm-evaluation-harness."""
