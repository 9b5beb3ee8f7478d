"""What training costs, computed from the ledger. Knows nothing of methods, models or the engine."""
