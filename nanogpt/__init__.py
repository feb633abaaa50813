"""What the programs at the root share, one job a file."""
