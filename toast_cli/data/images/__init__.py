"""Images: files, folders, archives and tables, their transforms, and their loader."""
