"""A suite small enough to be run, killed and damaged many times."""

from __future__ import annotations


def small_suite(seeds: int) -> str:
    """A linear probe on the demo, once with each of so many seeds, as a user writes it down."""
    return f"""
backbone: vit_demo_3
datasets: {{Markings: demo}}
rows:
  linear: {{method: linear}}
seeds: {list(range(seeds))}
tables:
  one:
    title: One
    columns: {{M: Markings}}
    rows:
      Linear: {{run: linear}}
"""
