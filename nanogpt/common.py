"""What all programs share: one-line errors, flags, whole files, the hub."""

import os
import sys


class UserError(ValueError):
    """Something the user can fix. The message names the thing, its value and the way out."""


def run(main):
    """Call main(); what the user can fix becomes one line on stderr and exit status 2."""
    try:
        main()
    except (UserError, OSError) as error:  # OSError: the disk is full, a file may not be read
        if os.environ.get("DEBUG"):  # DEBUG=1 shows the traceback
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
