"""Runs the command line: python main.py fit --config configs/quickstart.yaml."""

from fc_lightning.cli.main import main

main()
