"""Engines: how a training step on each pair moves what is read from each prompt.

One folder for each engine, and a row in `offers.OFFERS`.
"""
