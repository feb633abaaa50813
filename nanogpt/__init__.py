"""The rooms of the program: what train_gpt2.py, hellaswag.py and fineweb.py share."""

__version__ = "2.0.0"  # of the lecture
