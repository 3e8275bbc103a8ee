"""Modules to JSON and back."""
