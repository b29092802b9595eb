"""Sparse autoencoders: encoders and files."""
