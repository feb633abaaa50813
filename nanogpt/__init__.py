"""The rooms of the program: what train_gpt2.py, hellaswag.py and fineweb.py share."""
