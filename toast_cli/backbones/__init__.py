"""The contract between a frozen network and the method."""
