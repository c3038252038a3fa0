"""The monitor as a callback of transformers' `Trainer`, and so of TRL's trainers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from transformers import TrainerCallback

from rlforget.training.monitor.figures import Figures
from rlforget.training.monitor.settings import MonitorSettings
from rlforget.training.monitor.tracker import Tracker
from rlforget.weights.ranks import from_first


class ForgettingMonitor(TrainerCallback):  # type: ignore[misc]
    """Follows what a trainer changes and what that costs earlier domains, while it trains.

        rf.ForgettingMonitor(protect=["math"], every=10).attach(trainer)

    `attach` puts it before the trainer's reporters, so that W&B, TensorBoard and MLflow log its figures beside the
    trainer's own, as `forgetting/…`. Given as one of the trainer's `callbacks` it comes after them: its figures are
    then in `trainer.state.log_history` and in `log`, and with the callbacks behind it.

    Measured steps are logged whatever the trainer's `logging_steps`. A run that goes on from a trainer's checkpoint is
    compared with the weights there, unless `reference` names others.

    Args:
        settings: What to do; instead of `options`.
        options: The attributes of `MonitorSettings`.

    Attributes:
        tracker: The tracker, from the start of the training on; `tracker.measured` holds every measurement.

    Raises:
        ConfigError: Options that cannot be. What does not fit the model is raised when the training starts.
    """

    def __init__(self, *, settings: MonitorSettings | None = None, **options: Any) -> None:
        self._settings = settings or MonitorSettings(**options)
        self.tracker: Tracker | None = None
        self._unlogged: Figures | None = None

    def attach(self, trainer: Any) -> Self:
        """Put this monitor before all other callbacks of a trainer, and return it."""
        trainer.callback_handler.callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take the reference and the protected domains' measure."""
        chosen = self._settings
        if chosen.tokenizer is None and given.get("processing_class") is not None:
            chosen = replace(chosen, tokenizer=given["processing_class"])
        self.tracker = Tracker(given["model"], settings=chosen, step=state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the weights before the step."""
        self._running().before_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """See the weights after it."""
        figures = self._running().after_step()
        if figures is not None:
            self._unlogged = figures

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Have a measured step logged, the last one always, and end the training where that is asked for."""
        if state.global_step == state.max_steps:
            self._unlogged = self._running().finish()
        control.should_log |= self._unlogged is not None
        if self._settings.stop:
            stop = self._running().should_stop
            control.should_training_stop |= from_first(lambda: stop)  # or processes would wait for one that has stopped

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the last measurement to what is logged."""
        if self._unlogged is None or logs is None:
            return
        figures = {f"forgetting/{name}": value for name, value in self._unlogged.flat().items()}
        self._unlogged = None
        logs.update(figures)
        if state.log_history:  # a copy of `logs`, made before the callbacks are called
            state.log_history[-1].update(figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Measure a last time and commit, where the training ended before its last step."""
        self._running().finish()

    def _running(self) -> Tracker:
        assert self.tracker is not None, "the training has begun"
        return self.tracker
