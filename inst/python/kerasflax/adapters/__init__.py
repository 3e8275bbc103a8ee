"""Flax's module systems behind one protocol."""
