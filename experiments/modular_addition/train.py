"""Train the Transformer of modular addition, with its spectra recorded at every step."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

import torch
from spectral_monitor.monitor import SpectralMonitor
from spectral_monitor.run.recorder import Recorder
from spectral_monitor.run.sinks import Sink
from spectral_monitor.step.frame import SpectralFrame
from torch import Tensor, nn

from experiments.kit.checkpoint import load_checkpoint, save_checkpoint, seed_everything
from experiments.kit.options import Options
from experiments.kit.progress import ProgressBar, progress_bar
from experiments.kit.run_folder import CHECKPOINT
from experiments.kit.training import Training
from experiments.modular_addition.data import Split, addition_split
from experiments.modular_addition.model import AdditionTransformer
from experiments.modular_addition.presets import Settings

# Layers that feed each other, the residual connections left out, as in Yunis et al. (2024),
# appendix A.
PAIRS = [
    ("embedding.weight", "attention.value.weight"),
    ("embedding.weight", "attention.query.weight"),
    ("embedding.weight", "attention.key.weight"),
    ("attention.query.weight", "attention.key.weight"),
    ("attention.value.weight", "attention.output.weight"),
    ("attention.output.weight", "mlp_in.weight"),
    ("mlp_in.weight", "mlp_out.weight"),
    ("mlp_out.weight", "unembedding.weight"),
]


def train(options: Options[Settings], folder: Path) -> float:
    """Train until the settings' end, from the folder's checkpoint where there is one.

    Returns the seconds that the training took, over all its interruptions.

    Leaves ``metrics.jsonl`` (one frame per line) and ``checkpoint.pt`` in ``folder``. A run that
    was killed and one that was not leave the same numbers, timings apart, on one CPU with one
    number of threads.
    """
    settings, device = options.settings, options.device
    seed_everything(options.seed)
    split = addition_split(settings.p, settings.train_fraction, options.seed, device)
    model = AdditionTransformer(settings).to(device)
    checkpoint = load_checkpoint(folder / CHECKPOINT, device)
    # What was recorded after the checkpoint is dropped: those steps come again.
    first_step = 0 if checkpoint is None else checkpoint["step"]
    with Recorder(folder, resume_from=first_step - 1) as recorder:
        monitor = make_monitor(model, settings, recorder)
        training = Training(model, make_optimizer(model, settings), monitor)
        # Closing it records the frames that are still on their way from a GPU.
        with contextlib.closing(monitor):
            if checkpoint is not None:
                training.load_state_dict(checkpoint)
            train_from(training, settings, split, folder)
    return training.seconds


def make_optimizer(model: AdditionTransformer, settings: Settings) -> torch.optim.AdamW:
    """AdamW with decay on every parameter, biases and embeddings included, as Nanda et al. do."""
    return torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
    )


def warmed_up(settings: Settings, step: int) -> float:
    """The learning rate of update ``step`` (from 0): linear up to update ``warmup_steps``."""
    return settings.learning_rate * min(1.0, (step + 1) / max(1, settings.warmup_steps))


def make_monitor(
    model: AdditionTransformer, settings: Settings, recorder: Sink | None
) -> SpectralMonitor:
    """All singular values and vectors of every matrix, alignments of `PAIRS`, agreement with the
    initial weights; frames go to ``recorder``."""
    return SpectralMonitor(
        model,
        method="tracked",
        every=settings.monitor_every,
        pairs=PAIRS,
        reference="init",
        recorder=recorder,
    )


def train_from(training: Training, settings: Settings, split: Split, folder: Path) -> None:
    """The loop: measure step ``training.step``, take it, and so on to the end of the run."""
    first = training.step
    clock = time.perf_counter() - training.seconds
    validation: dict[str, float] = {}
    awaited: SpectralFrame | None = None
    with progress_bar(first, settings.max_steps, f"modular addition mod {settings.p}") as bar:
        for step in range(first, settings.max_steps + 1):
            training.step = step
            if step > first and step % settings.checkpoint_every == 0:
                training.seconds = time.perf_counter() - clock
                save_checkpoint(folder / CHECKPOINT, training.state_dict())

            logits = training.model(split.train_tokens)
            loss = cross_entropy(logits, split.train_sums)
            # Not read here, which would wait for a GPU at every step.
            measured: dict[str, float | Tensor] = {
                "train_loss": loss.detach(),
                "train_accuracy": accuracy(logits, split.train_sums),
            }
            if step % settings.validate_every == 0 or step == settings.max_steps:
                validation = validate(training.model, split)
                measured |= validation
            # Spectra, losses and accuracies of one step are all of the same weights: those after
            # `step` updates.
            frame = training.monitor.step(step, **measured)
            bar.update(step - bar.n)
            awaited = awaited or frame
            if awaited is not None and awaited.arrived:
                show(bar, awaited, validation)
                awaited = None
            generalized = measured.get("validation_accuracy") == 1.0
            if settings.stop_when_generalized and generalized and frame is not None:
                break
            if step < settings.max_steps:
                update(training.optimizer, loss, warmed_up(settings, step))
    training.seconds = time.perf_counter() - clock


def update(optimizer: torch.optim.Optimizer, loss: Tensor, learning_rate: float) -> None:
    """One optimizer step at ``learning_rate``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def cross_entropy(logits: Tensor, sums: Tensor) -> Tensor:
    """Mean cross-entropy, a float64 scalar.

    In float32 a loss below 1e-7 rounds to 0 and its gradient to noise, which a run without weight
    decay reaches; Nanda et al. compute the log-softmax in float64 for that reason.
    """
    return nn.functional.cross_entropy(logits.double(), sums)


def accuracy(logits: Tensor, sums: Tensor) -> Tensor:
    """Share of rows whose largest logit is at the sum, a float64 scalar."""
    return (logits.argmax(dim=-1) == sums).double().mean()


@torch.no_grad()
def validate(model: nn.Module, split: Split) -> dict[str, float]:
    """Loss and accuracy on all validation pairs, and accuracy on those without a trained mirror."""
    logits = model(split.validation_tokens)
    unmirrored = ~split.mirror_is_trained
    return {
        "validation_loss": cross_entropy(logits, split.validation_sums).item(),
        "validation_accuracy": accuracy(logits, split.validation_sums).item(),
        "unmirrored_accuracy": accuracy(
            logits[unmirrored], split.validation_sums[unmirrored]
        ).item(),
    }


def show(bar: ProgressBar, frame: SpectralFrame, validation: dict[str, float]) -> None:
    """Put the numbers of a frame, and of the last validation, on the progress bar."""
    numbers = {
        "loss": f"{frame.scalars['train_loss']:.1e}",
        "train": f"{frame.scalars['train_accuracy']:.3f}",
        "val": f"{validation.get('validation_accuracy', math.nan):.3f}",
        "rank": f"{mean_normalized_rank(frame):.3f}",
        "monitor": f"{frame.overhead:.0%}",
    }
    bar.set_postfix(numbers, refresh=False)


def mean_normalized_rank(frame: SpectralFrame) -> float:
    """Mean over matrices of exp(H) / r, which is 1 for a flat spectrum of any size.

    Equation 2 of Yunis et al. is H / r, which no size can bring near 1; their plots have this one.
    """
    rows = frame.matrices.values()
    return sum(row.effective_rank_exp / min(row.shape) for row in rows) / len(rows)
