"""Figures, reports and pages. Only this package and `bench.tables` import matplotlib."""
