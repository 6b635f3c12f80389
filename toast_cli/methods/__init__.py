"""Methods, each of which adapts a backbone and declares the parameters it trains."""
