"""What an organisation answers for: the ledger of spent privacy."""
