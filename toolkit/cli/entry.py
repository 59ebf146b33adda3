"""Where the command begins, and how it ends: one line for whatever a user can meet."""

from __future__ import annotations

import sys
import traceback

from toolkit.cli.streams import deaf_streams, refuse_lost_output


def main() -> None:
    """Run the command line; only our own bugs show a traceback, and how to report them."""
    from toolkit.cli import main as cli  # it takes `errors_in_one_line` from here

    with deaf_streams():
        try:
            cli.main()
        except SystemExit as end:
            if not end.code:
                refuse_lost_output()
            raise
        # A panic of a Rust library is no Exception, and must not end in silence either.
        except BaseException as error:
            traceback.print_exception(error)
            print(_REPORT, file=sys.stderr)
            sys.exit(OWN_FAULT)


OWN_FAULT = 70
"""Exit code of an error of our own (EX_SOFTWARE of sysexits)."""

_REPORT = (
    "error: this is a fault of the toolkit, not of your files or settings. Please report it with "
    "the lines above, the command, and what `toolkit machine` prints. Stages that are complete "
    "stand; the same command continues."
)


if __name__ == "__main__":
    main()
