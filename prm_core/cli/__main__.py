"""`python -m prm_core.cli` is `prm`."""

from prm_core.cli import main

main()
