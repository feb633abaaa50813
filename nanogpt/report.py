"""What a run says: its log, its curves, the table at the start, its lines."""


def print_evaluation(step, found):
    """Print the Evaluation after `step` updates."""
    print(f"step {step:5d} | val {found.val_loss:.4f} | evaluated in {found.seconds:.1f} s")
    for number, continuation in enumerate(found.samples):
        print(f"  sample {number}: {continuation!r}")
