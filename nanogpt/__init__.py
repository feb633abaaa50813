"""What the programs in the root folder share; each file has one job."""
