"""Metrics as sums: what each client adds, what a sum means, and what is told of many clients."""
