"""Batches of token ids: chunks of a data set, padded or packed, behind one interface."""
