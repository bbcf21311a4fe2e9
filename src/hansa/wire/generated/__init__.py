"""Generated from federation.proto by ``make proto``; not to be edited."""
