"""The symbolic policy: arrays in, arrays out; knows no model."""
