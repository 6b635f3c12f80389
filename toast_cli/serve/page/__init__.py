"""The interactive page of `toast app`: one module per tab, and none of them imports torch before the page is shown."""
