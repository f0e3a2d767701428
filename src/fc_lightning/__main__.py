"""``python -m fc_lightning`` is ``main.py``."""

from fc_lightning.cli.main import main

main()
