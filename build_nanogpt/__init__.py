"""The tools around the lecture: python -m build_nanogpt. The program never imports them."""
