"""What a run says: its log, its curves, the table at the start, its lines."""


def print_evaluation(step, found):
    """Print the Evaluation after `step` updates."""
    hella = ""
    if found.hella:
        hella = f" | hella {found.hella[0]:.4f} +- {found.hella[1]:.4f}"
    print(f"step {step:5d} | val {found.val_loss:.4f}{hella} | "
          f"evaluated in {found.seconds:.1f} s")
    for number, continuation in enumerate(found.samples):
        print(f"  sample {number}: {continuation!r}")
