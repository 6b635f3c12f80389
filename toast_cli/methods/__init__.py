"""Methods: each puts itself on a backbone and declares what it trains."""
