"""Cost of a run before it starts: memory, throughput, price of each method."""
