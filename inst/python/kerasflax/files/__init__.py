"""Variables and models in files."""
