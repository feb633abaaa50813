"""What the programs in the root folder share; each file has one job."""

__version__ = "2.0.0"  # of the lecture
