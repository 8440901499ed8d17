"""Model servers on this machine: one per model however many processes ask, gone when nobody needs it."""
