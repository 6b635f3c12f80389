"""What the families of transformers share: steering of value projections, attention maps, folders and the hub."""
