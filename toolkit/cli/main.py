"""The command line. Flags say where; whatever changes a number stands in the recipe.

Nothing slow is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from toolkit.cli import adapter, merge, publish, questions, study, train
from toolkit.cli.compare import compare
from toolkit.cli.evaluate import evaluate
from toolkit.cli.generate import chat, generate
from toolkit.cli.init import init
from toolkit.cli.machine import machine
from toolkit.cli.mixture import fit_app
from toolkit.cli.plan import plan, power
from toolkit.cli.process import INTERRUPTED, errors_in_one_line, quieten

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adapt a language model to a domain without losing the model.",
)
for name, group in {
    "publish": publish.app,
    "study": study.app,
    "data": train.data_app,
    "cpt": train.cpt_app,
    "merge": merge.app,
    "search": train.search_app,
    "adapter": adapter.app,
    "sft": train.sft_app,
    "fit": fit_app,
    "checkpoint": train.checkpoint_app,
    "questions": questions.app,
}.items():
    app.add_typer(group, name=name)
# An unquoted glob arrives as further arguments; `init` says what to do about them.
app.command(context_settings={"allow_extra_args": True})(init)
commands = (
    plan,
    power,
    generate,
    chat,
    evaluate,
    train.infilling,
    train.repeat,
    train.heal,
    compare,
    machine,
)
for command in commands:
    app.command("eval" if command is evaluate else None)(command)


def main() -> None:
    """Run the command line; only our own bugs show a traceback."""
    # Before any library is imported: they read the environment then.
    quieten()
    with errors_in_one_line():
        try:
            code = app(standalone_mode=False)  # typer answers Ctrl-C with the code shells use
        except typer.Exit as done:
            sys.exit(done.exit_code)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except Exception as error:
            # Told by its module: newer versions of typer carry a copy of click under their own
            # name.
            if type(error).__module__.startswith(("click", "typer")) and hasattr(error, "show"):
                error.show()
                sys.exit(getattr(error, "exit_code", 2))
            raise
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
