"""The toy space as an NNI model space, and an evaluator that reports its made-up outcomes."""

from __future__ import annotations

from typing import Any

import nni
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.nn.pytorch import ModelSpace
from toy import toy_outcome, toy_space

from smnas.records import Measured


class ToyModelSpace(ModelSpace):
    """The choices and the rule of `toy_space`."""

    def __init__(self) -> None:
        super().__init__()
        for mutable in toy_space():
            self.add_mutable(mutable)


def report_toy_outcome(model: Any) -> None:
    """Reports both objectives; the deepest first choice crashes."""
    parameter = nni.get_current_parameter()
    sample = parameter.sample
    if sample["d0"] == 4:
        raise RuntimeError("too deep")
    outcome = toy_outcome(sample)
    assert isinstance(outcome, Measured)
    nni.report_final_result({"default": outcome.metrics["map"], **outcome.metrics})


def toy_evaluator() -> FunctionalEvaluator:
    return FunctionalEvaluator(report_toy_outcome)
