"""Devices, collectives and sharded training."""
