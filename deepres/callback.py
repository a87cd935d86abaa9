"""Extending a training run: the base class of callbacks and the order of their events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from deepres.data import Batch
    from deepres.training import Record, Result, Trainer


class Callback:
    """Base class of what extends a training run. Override the events that are needed; each does nothing by default.

    >>> class Stages(deepres.Callback):
    ...     def after_epoch(self, trainer, record):
    ...         print(record.epoch, record.val_error)
    >>> deepres.train(run, callbacks=[Stages()])

    Events come in this order. For each event the callbacks are called in the order in which they were given, for ``run_ends`` in
    the reverse order.

    ==================  =========================================================================================
    ``run_begins``      once, when the network, its optimizer and the data are ready
    ``restore``         once, on resume only, if the checkpoint holds a state of this callback
    ``before_step``     before each step; the learning rate of the step is set
    ``loss``            in each step, between the forward and the backward pass
    ``after_step``      after each update; ``trainer.progress.done`` counts this step
    ``after_epoch``     after the validation at the end of each epoch, before the checkpoint
    ``state``           before each checkpoint is written
    ``run_ends``        once, however the run ends
    ==================  =========================================================================================

    What may be changed: the network, in ``run_begins``, ``restore``, ``after_step`` and ``after_epoch``, and then
    ``trainer.replace_model`` must be called (see ``changes_network``); the learning rate of one step, in ``before_step``, through
    ``trainer.optimizer.param_groups``; the loss, in ``loss``. Everything else of the trainer is to be read only. Random numbers
    drawn in ``before_step`` do not disturb the run: the step seeds its generators afterwards.

    Under ``torchrun`` every process calls every event, except ``state``, which only the process that writes the checkpoint calls.
    A change of the network must be the same in all processes. Only ``trainer.context.is_main`` should write files. A forward pass
    that not all processes make must be made inside ``deepres.training.local_norms``.

    An exception ends the run: it is raised to the caller of ``train``, after ``run_ends`` of all callbacks whose
    ``run_begins`` had returned.
    """

    changes_network: bool = False  # whether the callback adds, replaces or removes modules of the network

    @property
    def name(self) -> str:
        """Key of this callback's state in the checkpoints; unique among the callbacks of a run that keep a state."""
        return type(self).__name__

    @property
    def keeps_state(self) -> bool:
        """Return whether ``state`` is overridden."""
        return type(self).state is not Callback.state

    def run_begins(self, trainer: Trainer) -> None:
        """Prepare. On resume ``trainer.progress`` is already that of the checkpoint, the weights are not yet."""

    def before_step(self, trainer: Trainer, batch: Batch) -> None:
        """Look at the network before a step. ``batch`` holds this process's examples."""

    def loss(self, trainer: Trainer, loss: Tensor, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to minimise, ``()``: ``loss`` itself, or with terms added.

        ``loss`` is the mean cross-entropy of this process's examples, as changed by the callbacks before; ``logits`` ``(N, K)``, or
        ``(N, L, K)`` of a language model, carry gradients; ``images`` ``(N, C, H, W)`` are as the network saw them (mixed, resized);
        ``labels`` ``(N,)`` are not mixed. In a process that has no example of a batch N is 0, and what is returned is not used.
        """
        return loss

    def after_step(self, trainer: Trainer, batch: Batch) -> None:
        """Act on the updated weights."""

    def after_epoch(self, trainer: Trainer, record: Record) -> None:
        """Act on an epoch's figures. They are those of the network before any change made here."""

    def run_ends(self, trainer: Trainer, result: Result | None) -> None:
        """Release what is held: files, hooks. ``result`` is ``None`` where the run was interrupted or an error ended it."""

    def state(self) -> dict[str, Any] | None:
        """Return the state that a resumed run needs, made of tensors, numbers, strings, lists and dictionaries; ``None``: no state."""
        return None

    def restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """Take up ``state``. A callback that changes the network brings it to the shape that it had then; its weights are loaded next.

        Not called if the checkpoint holds no state of this callback, which then begins anew.
        """
