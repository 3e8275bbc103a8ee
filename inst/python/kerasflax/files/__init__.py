"""Files of variables and models."""
