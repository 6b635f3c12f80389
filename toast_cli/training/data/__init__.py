"""The data of a run: opened, checked, recorded, and found again."""
