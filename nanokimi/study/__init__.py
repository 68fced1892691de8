"""Studies: many runs planned, shared among workers, and judged together (ladder, scale, sweep)."""
