"""What services apart from the server share: settings, a folder of their own, and calls that a known server signed.

``hansa.decryptor`` and ``hansa.authority`` are such services. Neither knows the server's store nor its code.
"""
