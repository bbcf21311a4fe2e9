"""Secure sums: the server learns the sum of a cohort's integer vectors and nothing else about one client.

The machines take messages and return messages; they do no I/O, read no clock and draw no randomness of their own.
``docs/reference/secure-sum-protocol.md`` specifies them; ``docs/explanation/secure-aggregation.md`` says what they
protect.
"""
