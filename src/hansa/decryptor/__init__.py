"""The decryptor of ``oneshot-seeds``: a service of an operator of its own, which gives one sum of masks a round.

It knows neither the server's store nor its code: what it holds is its key, its policy and what it has answered.
``docs/how-to/run-a-decryptor.md`` says how it is run.
"""
