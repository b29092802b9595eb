"""Reads a run and draws it: the page `report.html`, and figures for a paper."""
