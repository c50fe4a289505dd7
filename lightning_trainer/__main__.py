"""Runs as cli.py does: python -m lightning_trainer fit --config configs/digits.yaml."""

from lightning_trainer.main import main

if __name__ == "__main__":
    main()
