"""`python -m toolkit`, for launchers such as `accelerate launch -m toolkit`."""

from toolkit.cli.entry import main

main()
