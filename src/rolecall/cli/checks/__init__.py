"""What `rolecall check` looks at, one file per subject."""
