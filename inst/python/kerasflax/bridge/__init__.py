"""Conversions between Flax's pytrees and Keras: variables, inputs, weights in Keras's files."""
