"""Where users are: the ways in and the ways out."""
