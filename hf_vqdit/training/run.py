# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""What the training scripts share: precision, data, logs, checkpoints and resume, averaged weights, the dry run."""

import gc
import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, gather_object, parse_flag_from_env, set_seed
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel
from huggingface_hub import create_repo
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from hf_vqdit.data import PairStream, RecordCounts, ResumableBatchSampler, RowKey, StreamBatches
from hf_vqdit.data.workers import outlast_signals
from hf_vqdit.evaluation.report import SUMMARY_FILE
from hf_vqdit.training.argument_groups import OptimizationArguments
from hf_vqdit.training.arguments import write_config
from hf_vqdit.training.checkpoints import find_checkpoint, publish, read_data_state, read_state, write_data_state
from hf_vqdit.training.cost import describe_cost
from hf_vqdit.training.precision import choose_precision
from hf_vqdit.training.stop_signal import StopSignal

logger = logging.getLogger(__name__)


class TrainingRun:
    """One run of a training script: its accelerator, its folder, its data, its log and its checkpoints.

    A checkpoint is written to `checkpoint-{step}.tmp` and renamed when complete. Its sub-folders load with
    `from_pretrained`: the model under its name, the averaged weights under `{name}_ema`.

    Args:
        arguments (`TrainVQVAEArguments` or `TrainDiTArguments`): The settings.
        section (`str`): The script's section of the YAML files.

    Raises:
        ValueError: If the checkpoint to resume from is missing or of another format version, or if a run that shall
            start anew finds checkpoints of an earlier one.
    """

    def __init__(self, arguments: Any, section: str):
        self.arguments, self.section = arguments, section
        self.output_dir = Path(arguments.output_dir)
        self.repo_id = arguments.hub_model_id or self.output_dir.resolve().name
        self.checkpoint = find_checkpoint(self.output_dir, arguments.resume_from_checkpoint)
        self.resumed_state = read_state(self.checkpoint) if self.checkpoint else {}
        self.first_step = self.resumed_state.get("step", 0)
        self.records = RecordCounts(arguments.max_bad_fraction)  # of this process
        self._are_held_out_counted = False
        self._train_set: Dataset | PairStream | None = None
        self._stream: StreamBatches | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self._pinned: dict[str, Any] = {}
        self._stop_signal, self._is_stopping, self._saved_step = StopSignal(), False, None
        self._started = time.perf_counter() - self.resumed_state.get("seconds", 0.0)

        # `Accelerator` reads the variable itself, but the precision, which it wants, depends on the device.
        process = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
        logging.getLogger("hf_vqdit").setLevel(logging.INFO if process.is_main_process else logging.WARNING)
        self.accelerator = Accelerator(
            gradient_accumulation_steps=arguments.gradient_accumulation_steps,
            mixed_precision=self._choose_precision(process),
            log_with=None if arguments.report_to == "none" else arguments.report_to,
            project_config=ProjectConfiguration(str(self.output_dir), str(self.output_dir / arguments.logging_dir)),
        )
        self._resumed_data = read_data_state(self.checkpoint, process.process_index) if self.checkpoint else {}
        if "records" in self._resumed_data:
            self.records.load_state_dict(self._resumed_data["records"])
            self._are_held_out_counted = self._resumed_data.get("are_held_out_counted", False)
        set_seed(arguments.seed, device_specific=True)
        if not arguments.dry_run:
            self._open_output()
        self.restart_clock()

    def _choose_precision(self, process: PartialState) -> str:
        """The precision, the same on all processes; a resume keeps what was chosen, or it would not be exact."""
        if self.arguments.mixed_precision != "auto":
            return self.arguments.mixed_precision
        choice = self.resumed_state.get("mixed_precision")
        if choice is None and process.is_main_process:
            choice = choose_precision(process.device)
        return broadcast_object_list([choice])[0]

    def _open_output(self) -> None:
        """Writes the resolved settings and opens the trackers."""
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_config(self.arguments, self.section, self.output_dir / "training_config.yaml")
            if self.arguments.push_to_hub:  # a missing login shows now rather than after the training
                create_repo(self.repo_id, exist_ok=True)
        settings = self.settings.items()
        config = {name: value if isinstance(value, int | float) else str(value) for name, value in settings}
        self.accelerator.init_trackers(self.section, config)

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings by name."""
        return dict(vars(self.arguments))

    @property
    def global_batch_size(self) -> int:
        """Rows an optimizer step, over all micro-batches and processes."""
        processes = self.accelerator.num_processes
        return self.arguments.train_batch_size * self.arguments.gradient_accumulation_steps * processes

    def is_due(self, every: int, step: int) -> bool:
        """Whether what happens every so many steps (0: never), and after the last one, happens after this one."""
        return every > 0 and (step % every == 0 or step == self.arguments.max_train_steps)

    # Data

    def batches(self, dataset: Dataset | PairStream, collate_fn: Callable) -> Iterator[dict[str, Any]]:
        """The micro-batches of this process, from the first step to the last; settles how many steps the epochs are.

        Args:
            dataset (`torch.utils.data.Dataset` or `PairStream`): A `PairDataset` or `CodesDataset`, or a stream.
            collate_fn (`Callable`): The function that batches its items.

        Returns:
            `Iterator[dict]`

        Raises:
            ValueError: If the steps of a stream's epochs are asked for, or the checkpoint to resume from has no state
                of this stream.
        """
        self._train_set = dataset
        if isinstance(dataset, PairStream):
            return self._stream_batches(dataset)
        arguments, accelerator = self.arguments, self.accelerator
        if arguments.num_train_epochs is not None:
            arguments.max_train_steps = math.ceil(arguments.num_train_epochs * len(dataset) / self.global_batch_size)
        sampler = ResumableBatchSampler(
            len(dataset),
            arguments.train_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            arguments.gradient_accumulation_steps,
            arguments.seed,
            self.first_step,
            max_train_steps=arguments.max_train_steps,
        )
        # With a generator of its own the loader draws nothing from the global one, whose state a checkpoint restores.
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate_fn,
            num_workers=arguments.dataloader_num_workers,
            worker_init_fn=outlast_signals,
            generator=torch.Generator().manual_seed(arguments.seed),
        )
        return iter(loader)

    def _stream_batches(self, stream: PairStream) -> Iterator[dict[str, Any]]:
        arguments, accelerator = self.arguments, self.accelerator
        if arguments.num_train_epochs is not None:
            raise ValueError(
                "A stream has no known length, so `num_train_epochs` cannot become steps: give `max_train_steps`."
            )
        self._stream = stream.batches(
            arguments.train_batch_size,
            accelerator.num_processes,
            accelerator.process_index,
            arguments.gradient_accumulation_steps,
            arguments.dataloader_num_workers,
        )
        if self.checkpoint is not None:
            if self._resumed_data.get("stream") is None:
                raise ValueError(
                    f"{self.checkpoint} has no position in a stream for process {accelerator.process_index}: it was "
                    "written without `streaming` or by fewer processes. Resume as it was trained, or start anew."
                )
            self._stream.load_state_dict(self._resumed_data["stream"])
        return iter(self._stream)

    def next_batch(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """The next micro-batch, on this process's device; counts its records and the seconds waited for it."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        self.records.add(batch)
        return self._to_device(batch)

    def some_batches(
        self, dataset: Dataset | PairStream, collate_fn: Callable, num_rows: int
    ) -> Iterator[dict[str, Any]]:
        """Some rows of a data set in batches, the same each time and on each process that asks: random ones, since
        data sets come in alphabetical and other orders; the first ones of a stream. Held-out ones are counted the
        first time, by one process; those of the set that [`batches`] reads are counted there."""
        is_first_look = dataset is not self._train_set and not self._are_held_out_counted
        is_counted = is_first_look and self.accelerator.is_main_process
        if isinstance(dataset, PairStream):
            items = dataset.first_items(num_rows)
        else:
            order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(self.arguments.seed))
            items = (dataset[RowKey(0, index, row)] for row, index in enumerate(order[:num_rows].tolist()))
        while rows := list(islice(items, self.arguments.train_batch_size)):
            batch = collate_fn(rows)
            if is_counted:
                self.records.add(batch)
            yield self._to_device(batch)
        self._are_held_out_counted |= is_counted

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        device = self.accelerator.device
        return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}

    # Log

    def gather(self, terms: Mapping[str, torch.Tensor]) -> None:
        """Takes in numbers of the rows of one micro-batch, by name, for [`averages`].

        Args:
            terms (`Mapping[str, torch.Tensor]`):
                Numbers of shape `(n,)`, one for each row that has it; the same names on all processes.
        """
        rows = {name: rows.detach().float() for name, rows in terms.items()}
        self.gather_sums({name: torch.stack([x.sum(), x.new_full((), len(x))]) for name, x in rows.items()})

    def gather_sums(self, sums: Mapping[str, torch.Tensor]) -> None:
        """As [`gather`], for tensors of shape `(2,)` that hold a sum and the number of things it is over."""
        for name, pair in sums.items():
            self._sums[name] = self._sums[name] + pair if name in self._sums else pair

    def averages(self, step: int) -> dict[str, float]:
        """The means, over all rows of the global batch that have them, of what was gathered since the last call.

        Args:
            step (`int`): The optimizer step, counted from 1, for the error.

        Returns:
            `dict[str, float]`

        Raises:
            FloatingPointError: If one of them is NaN or infinite.
        """
        own = torch.stack([*self._sums.values(), self._signal()])
        *sums, (num_signals, _) = self.accelerator.reduce(own, reduction="sum").tolist()
        self._is_stopping = num_signals > 0  # on all processes at the same step
        averages = {name: total / count for name, (total, count) in zip(self._sums, sums, strict=True) if count}
        self._sums.clear()
        check_finite(averages, step)
        return averages

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends metrics, the loop's speed and the part of it that waits for data to the trackers and the log."""
        elapsed = time.perf_counter() - self._clock_start
        speed = {"steps_per_second": (step - self._clock_step) / elapsed, "data_wait": self._waited / elapsed}
        self.accelerator.log({**metrics, **speed}, step=step)
        logger.info("step %d of %d  %s", step, self.arguments.max_train_steps, _to_line({**metrics, **speed}))
        self.restart_clock(step)

    def log_validation(self, step: int, figures: Mapping[str, float]) -> None:
        """Sends what was measured on held-out pairs to the trackers and the log."""
        self.accelerator.log({f"validation/{name}": value for name, value in figures.items()}, step=step)
        logger.info("validation after step %d  %s", step, _to_line(figures))

    def restart_clock(self, step: int | None = None) -> None:
        """Measures speed and waiting anew: after a validation or a checkpoint, which are no part of a step."""
        self._clock_step = self.first_step if step is None else step
        self._clock_start, self._waited = time.perf_counter(), 0.0

    def save_samples(self, step: int, page: Image.Image) -> None:
        """Saves a picture grid under `samples/` and shows it in the trackers."""
        folder = self.output_dir / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        page.save(folder / f"step-{step:06d}.png")
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"samples": np.asarray(page)[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"samples": [page]}, step=step)

    def finish(self, figures: Mapping[str, float]) -> None:
        """Reports what could not be read of the data, writes the summary of the run, and closes the trackers.

        Prepared models are to be freed before. One that outlives its process group ends the group's threads from its
        own destructor, under Python's lock, for which those threads may be waiting: the process would never exit.

        Args:
            figures (`Mapping[str, float]`): What the last validation measured.
        """
        records = RecordCounts()
        for state_dict in gather_object([self.records.state_dict()]):
            records.load_state_dict(state_dict)
        for line in records.warnings():
            logger.warning(line)
        if self.accelerator.is_main_process:
            summary = {"seconds": self._seconds(), "steps": self.arguments.max_train_steps, "figures": dict(figures)}
            summary["records"] = records.report()
            (self.output_dir / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        gc.collect()  # a wrapped model is part of a reference cycle
        self.accelerator.end_training()

    def _seconds(self) -> float:
        """Since the start of the run, with what it took before it was resumed."""
        return time.perf_counter() - self._started

    # Checkpoints

    def register(self, name: str, model: ModelMixin, ema: EMAModel | None, *stateful: Any, **companions: Any) -> None:
        """Says what a checkpoint holds besides the prepared optimizer; before [`resume`] and [`save_checkpoint`].

        Args:
            name (`str`): Sub-folder of the model.
            model (`ModelMixin`): The model, not wrapped.
            ema (`EMAModel`, *optional*): Its averaged weights.
            stateful: Objects with `state_dict` and `load_state_dict`: learning-rate schedule, codebook trainer.
            companions: By sub-folder, what is saved by `save_pretrained` and does not change: the caption tokenizer.
        """
        self.name, self.model, self.ema, self.companions = name, model, ema, companions
        self.accelerator.register_for_checkpointing(*stateful)
        self.accelerator.register_save_state_pre_hook(self._save_models)
        self.accelerator.register_load_state_pre_hook(self._load_models)

    def pin(self, name: str, value: Any) -> None:
        """Says what has to be the same when the run is resumed, such as the tokenizer whose codes it learns.

        Args:
            name (`str`): What it is.
            value: A value that JSON holds.

        Raises:
            ValueError: If the checkpoint to resume from has another one.
        """
        if self.checkpoint is not None and (saved := self.resumed_state["pinned"].get(name)) != value:
            raise ValueError(
                f"{self.checkpoint} was trained with another {name} ({saved}) than the one given ({value}): name that "
                "one, or start anew in another `output_dir`."
            )
        self._pinned[name] = value

    def resume(self) -> int:
        """Restores the checkpoint that the settings name, if any; returns the number of optimizer steps done.

        From here to the last step Ctrl-C and SIGTERM wait for [`leave_if_interrupted`].
        """
        self._stop_signal.listen()
        if self.checkpoint is not None:
            saved = self.resumed_state["arguments"]
            for name, value in self.settings.items():
                if name not in ("resume_from_checkpoint", "output_dir") and saved.get(name, value) != value:
                    logger.warning("Resuming with `%s` = %r; the checkpoint has %r.", name, value, saved[name])
            self.accelerator.load_state(str(self.checkpoint))
            logger.info("Resumed from %s.", self.checkpoint)
            if self.first_step >= self.arguments.max_train_steps:
                logger.warning("Nothing is left to train: raise `max_train_steps`, or name another `output_dir`.")
        return self.first_step

    def save_checkpoint(self, step: int) -> None:
        """Writes `checkpoint-{step}` aside, renames it, and removes the oldest above `checkpoints_total_limit`."""
        folder = self.output_dir / f"checkpoint-{step}"
        aside = folder.with_name(f"{folder.name}.tmp")
        if self.accelerator.is_main_process and aside.exists():  # a crash left it
            shutil.rmtree(aside)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(aside))
        stream = self._stream.state_dict() if self._stream is not None else None
        records = {"records": self.records.state_dict(), "are_held_out_counted": self._are_held_out_counted}
        write_data_state(aside, self.accelerator.process_index, records | {"stream": stream})
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            state = {
                "step": step,
                "seconds": self._seconds(),
                "mixed_precision": self.accelerator.mixed_precision,
                "arguments": self.settings,
                "pinned": self._pinned,
            }
            publish(aside, folder, state, self.arguments.checkpoints_total_limit)
        self.accelerator.wait_for_everyone()
        self._saved_step = step
        logger.info("Saved %s.", folder)

    def leave_if_interrupted(self, step: int) -> None:
        """Where Ctrl-C or SIGTERM came during this step, in any process, writes a checkpoint and ends the run.

        Args:
            step (`int`): The number of optimizer steps done.

        Raises:
            SystemExit: With the exit status of a process that the signal ended.
        """
        if step == self.arguments.max_train_steps:  # no further step will tell of a signal
            self._is_stopping |= bool(self.accelerator.reduce(self._signal(), reduction="sum")[0])
            self._stop_signal.release()
        if not self._is_stopping:
            return
        if self._saved_step != step:
            self.save_checkpoint(step)
        logger.warning("Interrupted after step %d: go on with `--resume_from_checkpoint checkpoint-%d`.", step, step)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        raise SystemExit(128 + (self._stop_signal.number or signal.SIGTERM))

    def _signal(self) -> torch.Tensor:
        """Whether this process was told to stop, `(2,)`, as a pair of [`gather_sums`]."""
        return torch.tensor([self._stop_signal.number is not None, 1.0], device=self.accelerator.device)

    def _save_models(self, models: list[torch.nn.Module], weights: list[dict], folder: str) -> None:
        weights.clear()  # or accelerate would save them a second time
        if self.accelerator.is_main_process:
            for name, part in {self.name: self.model, **self.companions}.items():
                part.save_pretrained(Path(folder) / name)
            if self.ema is not None:
                with self.averaged_weights():
                    self.model.save_pretrained(Path(folder) / f"{self.name}_ema")

    def _load_models(self, models: list[torch.nn.Module], folder: str) -> None:
        models.clear()
        self.model.load_state_dict(type(self.model).from_pretrained(folder, subfolder=self.name).state_dict())
        if self.ema is not None:
            averaged = type(self.model).from_pretrained(folder, subfolder=f"{self.name}_ema")
            shadows = [parameter.detach() for parameter in averaged.parameters()]
            self.ema.load_state_dict({"optimization_step": self.first_step, "shadow_params": shadows})
            self.ema.to(self.accelerator.device)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Puts the averaged weights, if there are any, into the model for as long as the block lasts."""
        if self.ema is None:
            yield
            return
        # Not `EMAModel.save_pretrained`: it builds a new model from the configuration of the start.
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            yield
        finally:
            self.ema.restore(self.model.parameters())

    # Dry run

    def print_dry_run(self, compute_loss: Callable[[], torch.Tensor]) -> None:
        """Prints the settings and what a run costs, by the loss of one micro-batch: see [`~.cost.describe_cost`]."""
        print(json.dumps(self.settings, indent=2))
        print(describe_cost(self.model, compute_loss, self.arguments, self.global_batch_size))


def make_optimizer(model: torch.nn.Module, arguments: OptimizationArguments) -> torch.optim.AdamW:
    """AdamW over what the model trains; weight decay for the weights of linear and convolutional layers alone.

    Args:
        model (`torch.nn.Module`): The model.
        arguments (`OptimizationArguments`): Learning rate and AdamW's settings.

    Returns:
        `torch.optim.AdamW`
    """
    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    decayed = {id(module.weight) for module in model.modules() if isinstance(module, layers)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": arguments.adam_weight_decay},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, betas=betas, eps=arguments.adam_epsilon)


def check_finite(losses: Mapping[str, float], step: int) -> None:
    """Stops a run whose loss is no number, before such weights are saved.

    Args:
        losses (`Mapping[str, float]`): The parts of the loss.
        step (`int`): The optimizer step, counted from 1.

    Raises:
        FloatingPointError: If a part is NaN or infinite.
    """
    if not all(map(math.isfinite, losses.values())):
        raise FloatingPointError(
            f"The loss is not finite at step {step}: {_to_line(losses)}. No checkpoint of this step was written. "
            "Resume from the last one with a lower `learning_rate` or a longer `lr_warmup_steps`; if "
            "`mixed_precision` is fp16, try bf16 or no."
        )


def _to_line(metrics: Mapping[str, float]) -> str:
    """Metrics in one line; those of a group (`group/name`) are for the trackers alone."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
