"""Sweeps: a YAML per experiment, Optuna for the plan, a process per trial, runs for results."""

__all__ = ["Outcome", "run_sweep"]

from sweeps.engine.driver import Outcome, run_sweep
