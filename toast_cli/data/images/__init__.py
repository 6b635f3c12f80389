"""Image data sets (folders, archives and tables), their transforms and their loader."""
