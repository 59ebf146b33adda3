"""`python -m toolkit`, for launchers such as `accelerate launch -m toolkit`."""

from toolkit.entry import main

main()
