"""Where the model looks: capturing maps, measuring them, drawing them."""
