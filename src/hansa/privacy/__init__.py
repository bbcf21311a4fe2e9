"""Differential privacy: integer noise, what it costs, matrices that correlate it, and audits of the mechanism."""
