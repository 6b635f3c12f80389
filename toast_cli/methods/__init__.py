"""Methods: each adapts a backbone and declares the parameters that it trains."""
