"""GPT-2 (124M), reproduced from an empty file: the network, its training, its evaluation.

Read from top to bottom: network, configuration, data, optimizer, training step, evaluation, main.
"""

from nanogpt.common import run


def main():
    print("an empty file: everything is still to come")


if __name__ == "__main__":
    run(main)
