"""Abstract traces of a module, and initial values computed from them."""
