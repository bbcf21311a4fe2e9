"""The authority: a service of an operator of its own, which vouches for the keys of the clients of a secure sum.

Where a plan asks for that, it also draws the graph of the sum. It holds a list of keys, a book of what it drew, and a
key of its own, which the server does not have. ``docs/how-to/run-an-authority.md`` says how it is run.
"""
