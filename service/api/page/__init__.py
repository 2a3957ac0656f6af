"""The pages: rendered here, with no script of their own, from what the ledger says."""
