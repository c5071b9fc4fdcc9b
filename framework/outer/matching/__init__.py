"""Trajectory matching: MTT and FTD, what they learn, and the experts that they match."""
