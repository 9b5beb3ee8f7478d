"""What a whole run takes, from a trial of its own."""

from __future__ import annotations

import torch

from fractrain.engine.config import RunConfig
from fractrain.plan.calibrate import RunEstimate, forecast, run_trial


def estimate(config: RunConfig) -> RunEstimate:
    """Try some steps on the CPU and multiply."""
    trial = run_trial(config, torch.device("cpu"))
    return forecast(config, trial, trial.parameters)
