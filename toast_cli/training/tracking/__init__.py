"""Trackers: programs that show the curves and pictures of runs, fed through Accelerate."""
