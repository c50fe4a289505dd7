"""Runs as cli.py does: python -m lightning_trainer fit --config configs/digits.yaml."""

from lightning_trainer.main import run_process

if __name__ == "__main__":
    run_process()
