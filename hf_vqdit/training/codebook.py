# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How a codebook learns: k-means start, exponential moving average, restart of codes that nobody uses.

The models never change their codebooks. Training gathers what the encoder produced over all micro-batches and
processes of one optimizer step, in the order of the global batch, and changes the codebooks once, after the optimizer.
So gradient accumulation and checkpointing change nothing, and all processes hold the same codes bit for bit.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from hf_vqdit.models.autoencoder_vqvae import VectorQuantizer, nearest_codes


@dataclass
class CodebookState:
    """What one codebook remembers between steps.

    Args:
        cluster_size (`torch.FloatTensor` of shape `(V,)`):
            Moving average of how many vectors chose each code in a step.
        vector_sum (`torch.FloatTensor` of shape `(V, D)`): Moving average of the sum of those vectors.
        reservoir (`torch.FloatTensor` of shape `(R, D)`): The newest vectors seen, for the start and the restarts.
        is_started (`bool`): Whether the k-means start is done.
        pending (`list`): Vectors `(N, D)` and their codes, micro-batch by micro-batch, since the last step.
    """

    cluster_size: torch.Tensor
    vector_sum: torch.Tensor
    reservoir: torch.Tensor
    is_started: bool
    pending: list[tuple[torch.Tensor, torch.Tensor | None]]


class CodebookTrainer:
    """Trains the codebooks of a tokenizer from what its encoders produce.

    Call [`observe`] for each micro-batch and [`step`] once an optimizer step, after the optimizer. While [`quantize`]
    is False the model is to be run with `quantize=False`.

    Moving average with Laplace smoothing: van den Oord 2017, appendix A.1, with the averages started from the k-means
    masses so that they need no debiasing. Restart: a code whose share of the vectors falls below `restart_threshold /
    V` moves onto a vector of the reservoir, drawn in proportion to its squared distance from its code (the law of
    k-means++, Arthur & Vassilvitskii 2007), so that what is served worst is served first.

    Args:
        quantizers (`dict[str, VectorQuantizer]`): The quantizers by name.
        start_step (`int`): Optimizer steps without quantization before the k-means start; at least 1.
        decay (`float`, *optional*, defaults to 0.99): Decay of the moving averages.
        restart_every (`int`, *optional*, defaults to 50): Optimizer steps between restarts; 0 for none.
        restart_until_step (`int`, *optional*):
            The last step that may restart codes, so that the end of training is calm.
        restart_threshold (`float`, *optional*, defaults to 0.03):
            Share of the vectors, times V, below which a code restarts.
        max_restart_fraction (`float`, *optional*, defaults to 0.1): Codes moved at one restart, as a part of V.
        vectors_per_code (`int`, *optional*, defaults to 16): Reservoir size, as a multiple of V.
        kmeans_iterations (`int`, *optional*, defaults to 20): Lloyd iterations at the start.
        epsilon (`float`, *optional*, defaults to 1e-5): Laplace smoothing.
        seed (`int`, *optional*, defaults to 0): Seed of the picks.

    Raises:
        ValueError: If `start_step` is below 1 or `decay` outside [0, 1).
    """

    def __init__(
        self,
        quantizers: dict[str, VectorQuantizer],
        *,
        start_step: int,
        decay: float = 0.99,
        restart_every: int = 50,
        restart_until_step: int | None = None,
        restart_threshold: float = 0.03,
        max_restart_fraction: float = 0.1,
        vectors_per_code: int = 16,
        kmeans_iterations: int = 20,
        epsilon: float = 1e-5,
        seed: int = 0,
    ):
        if start_step < 1:
            raise ValueError(
                f"`start_step` is {start_step}; the codebooks start from vectors of at least 1 earlier step."
            )
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` is {decay}; it must lie in [0, 1).")
        self.quantizers = quantizers
        self.start_step, self.decay, self.epsilon, self.seed = start_step, decay, epsilon, seed
        self.restart_every, self.restart_until_step = restart_every, restart_until_step
        self.restart_threshold, self.max_restart_fraction = restart_threshold, max_restart_fraction
        self.vectors_per_code, self.kmeans_iterations = vectors_per_code, kmeans_iterations
        self.states = {
            name: CodebookState(
                cluster_size=torch.zeros_like(quantizer.codebook[:, 0]),
                vector_sum=torch.zeros_like(quantizer.codebook),
                reservoir=quantizer.codebook.new_zeros(0, quantizer.codebook.shape[1]),
                is_started=False,
                pending=[],
            )
            for name, quantizer in quantizers.items()
        }

    @property
    def quantize(self) -> bool:
        """Whether the codebooks have been started."""
        return all(state.is_started for state in self.states.values())

    def observe(
        self, name: str, vectors: torch.Tensor, codes: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> None:
        """Takes in one micro-batch of this process.

        Args:
            name (`str`): The quantizer.
            vectors (`torch.FloatTensor` of shape `(..., D)`): What the encoder produced.
            codes (`torch.LongTensor` of shape `(...)`, *optional*): The codes they chose; `None` before the start.
            mask (`torch.BoolTensor` of shape `(...)`, *optional*):
                False for vectors to leave out (padding, a missing modality).
        """
        vectors = vectors.detach().float().flatten(0, -2)
        codes = codes.detach().flatten() if codes is not None else None
        if mask is not None:
            vectors = vectors[mask.flatten()]
            codes = codes[mask.flatten()] if codes is not None else None
        self.states[name].pending.append((vectors, codes))

    @torch.no_grad()
    def step(self, global_step: int) -> dict[str, float]:
        """Applies what was observed to the codebooks, once, and forgets it.

        Args:
            global_step (`int`): Optimizer steps done, this one included (1 after the first).

        Returns:
            `dict[str, float]`: `<name>_usage` (share of the codes that hold more than .01/V of the moving average),
            `<name>_perplexity` and `<name>_restarts`, once started.
        """
        metrics = {}
        for name, quantizer in self.quantizers.items():
            state = self.states[name]
            self._fill_reservoir(state, quantizer)
            if not state.is_started:
                if global_step >= self.start_step:
                    self._start(name, state, quantizer)
            else:
                self._move(state, quantizer)
                metrics[f"{name}_restarts"] = self._restart(name, state, quantizer, global_step)
                share = state.cluster_size / state.cluster_size.sum()
                metrics[f"{name}_usage"] = (share > 0.01 / len(share)).float().mean().item()
                metrics[f"{name}_perplexity"] = torch.special.entr(share).sum().exp().item()
            state.pending.clear()
        return metrics

    # Reservoir and averages

    def _fill_reservoir(self, state: CodebookState, quantizer: VectorQuantizer) -> None:
        """Puts evenly spaced vectors of this step, in global-batch order, into the reservoir, and drops the oldest."""
        capacity = self.vectors_per_code * quantizer.codebook.shape[0]
        for vectors, _ in state.pending:
            counts = _gather(torch.tensor([len(vectors)], device=vectors.device))
            total, first = int(sum(counts)), int(sum(counts[: _rank()]))
            picks = torch.arange(min(total, capacity), device=vectors.device)
            picks = (
                picks * total // max(1, min(total, capacity)) - first
            )  # positions in the micro-batch of all processes
            picks = picks[(picks >= 0) & (picks < len(vectors))]
            state.reservoir = torch.cat([state.reservoir, *_gather_rows(vectors[picks])])[-capacity:]

    def _move(self, state: CodebookState, quantizer: VectorQuantizer) -> None:
        """One step of the moving averages."""
        num_codes = quantizer.codebook.shape[0]
        counts, sums = torch.zeros_like(state.cluster_size), torch.zeros_like(state.vector_sum)
        for vectors, codes in state.pending:
            counts += torch.bincount(codes, minlength=num_codes)
            sums.index_add_(0, codes, vectors)
        _sum_over_ranks(counts)
        _sum_over_ranks(sums)
        state.cluster_size.lerp_(counts, 1 - self.decay)
        state.vector_sum.lerp_(sums, 1 - self.decay)
        total = state.cluster_size.sum()
        smoothed = (state.cluster_size + self.epsilon) / (total + num_codes * self.epsilon) * total
        means = state.vector_sum / smoothed.unsqueeze(1).clamp(min=torch.finfo(torch.float32).tiny)
        # A code that holds next to nothing keeps its place: its mean is noise.
        is_held = state.cluster_size > self.epsilon
        quantizer.codebook.copy_(torch.where(is_held.unsqueeze(1), quantizer.normalize(means), quantizer.codebook))

    # Start and restart

    def _generator(self, name: str, global_step: int) -> torch.Generator:
        """Picks are a function of (seed, codebook, step): a resume makes the same ones."""
        index = list(self.quantizers).index(name)
        return torch.Generator().manual_seed((self.seed * 1_000_003 + global_step) * 16 + index)

    def _start(self, name: str, state: CodebookState, quantizer: VectorQuantizer) -> None:
        """k-means over the reservoir, on the first process, then sent to all."""
        vectors_a_step = self._vectors_a_step(state)  # all processes take part, so before what the first does alone
        if len(state.reservoir) == 0:
            raise ValueError(
                f"The {name} codebook cannot start: no vector was observed. Does the data hold that modality?"
            )
        if _rank() == 0:
            # A vector that comes often (a frequent word) counts once, or it would take most of the centres.
            distinct = torch.unique(state.reservoir, dim=0)
            centres = self._kmeans(distinct, quantizer, self._generator(name, 0))
            quantizer.codebook.copy_(centres)
            codes = nearest_codes(state.reservoir, centres)
            state.cluster_size.copy_(torch.bincount(codes, minlength=len(centres)))
            # At the scale of one step, as the moving average will see it.
            state.cluster_size.mul_(vectors_a_step / len(state.reservoir))
            state.vector_sum.copy_(centres * state.cluster_size.unsqueeze(1))
        for tensor in (quantizer.codebook.data, state.cluster_size, state.vector_sum):
            _broadcast(tensor)
        state.is_started = True

    @staticmethod
    def _vectors_a_step(state: CodebookState) -> float:
        total = torch.tensor(float(sum(len(vectors) for vectors, _ in state.pending)), device=state.reservoir.device)
        _sum_over_ranks(total)
        return min(len(state.reservoir), total.item())

    def _kmeans(self, vectors: torch.Tensor, quantizer: VectorQuantizer, generator: torch.Generator) -> torch.Tensor:
        num_codes = quantizer.codebook.shape[0]
        centres = vectors[_spread_picks(vectors, num_codes, generator)]
        for _ in range(self.kmeans_iterations):
            codes = nearest_codes(vectors, centres)
            counts = torch.bincount(codes, minlength=num_codes).unsqueeze(1)
            means = torch.zeros_like(centres).index_add_(0, codes, vectors) / counts.clamp(min=1)
            centres = torch.where(counts > 0, quantizer.normalize(means), centres)
        return centres

    def _restart(self, name: str, state: CodebookState, quantizer: VectorQuantizer, global_step: int) -> int:
        """Moves codes that hold too little onto vectors that are served badly; returns how many."""
        if not self.restart_every or global_step % self.restart_every:
            return 0
        if self.restart_until_step is not None and global_step > self.restart_until_step:
            return 0
        num_codes = quantizer.codebook.shape[0]
        share = state.cluster_size / state.cluster_size.sum()
        dead = torch.nonzero(share < self.restart_threshold / num_codes).squeeze(1)
        dead = dead[share[dead].argsort(stable=True)][: max(1, int(self.max_restart_fraction * num_codes))]
        if len(dead) == 0:
            return 0
        if _rank() == 0:
            nearest = quantizer.codebook[nearest_codes(state.reservoir, quantizer.codebook)]
            weights = (state.reservoir - nearest).square().sum(1).double().cpu() + 1e-12
            picks = torch.multinomial(
                weights, len(dead), len(dead) > len(weights), generator=self._generator(name, global_step)
            )
            vectors = state.reservoir[picks.to(state.reservoir.device)]
            # The averages move with the code, or the next step would put it back.
            quantizer.codebook[dead] = vectors
            state.cluster_size[dead] = state.cluster_size.median()
            state.vector_sum[dead] = vectors * state.cluster_size[dead].unsqueeze(1)
        for tensor in (quantizer.codebook.data, state.cluster_size, state.vector_sum):
            _broadcast(tensor)
        return len(dead)

    # Checkpoints

    def state_dict(self) -> dict[str, dict]:
        """Everything that the next step depends on, besides the codebooks themselves."""
        names = ("cluster_size", "vector_sum", "reservoir", "is_started")
        return {name: {key: getattr(state, key) for key in names} for name, state in self.states.items()}

    def load_state_dict(self, state_dict: dict[str, dict]) -> None:
        """Restores what [`state_dict`] returned.

        Raises:
            ValueError: If the codebooks' names or sizes differ from those of the checkpoint.
        """
        if set(state_dict) != set(self.states):
            raise ValueError(
                f"The checkpoint holds codebooks {sorted(state_dict)}; this run trains {sorted(self.states)}."
            )
        for name, saved in state_dict.items():
            state = self.states[name]
            if saved["vector_sum"].shape != state.vector_sum.shape:
                raise ValueError(
                    f"The {name} codebook has shape {tuple(saved['vector_sum'].shape)} in the checkpoint and "
                    f"{tuple(state.vector_sum.shape)} in this run: resume with the configuration that was saved."
                )
            for key, value in saved.items():
                setattr(state, key, value.to(state.vector_sum.device) if torch.is_tensor(value) else value)


def _spread_picks(vectors: torch.Tensor, num_picks: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++ seeding: picks in proportion to the squared distance from those before, a hundredth at a time."""
    vectors = vectors.cpu()
    if len(vectors) <= num_picks:  # fewer vectors than codes: all of them, some twice
        return torch.arange(num_picks) % len(vectors)
    picks = torch.randint(len(vectors), (1,), generator=generator)
    distance = (vectors - vectors[picks]).square().sum(1).double()
    while len(picks) < num_picks:
        batch = min(num_picks - len(picks), max(1, num_picks // 100))
        new = torch.multinomial(distance + 1e-12, batch, generator=generator)
        picks = torch.cat([picks, new])
        distance = torch.minimum(distance, torch.cdist(vectors, vectors[new]).amin(1).square())
    return picks


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _rank() -> int:
    return dist.get_rank() if _is_distributed() else 0


def _world_size() -> int:
    return dist.get_world_size() if _is_distributed() else 1


def _sum_over_ranks(tensor: torch.Tensor) -> None:
    if _is_distributed():
        dist.all_reduce(tensor)


def _broadcast(tensor: torch.Tensor) -> None:
    if _is_distributed():
        dist.broadcast(tensor, src=0)


def _gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of all processes, of equal shape, by rank."""
    if not _is_distributed():
        return [tensor]
    gathered = [torch.empty_like(tensor) for _ in range(_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered


def _gather_rows(rows: torch.Tensor) -> list[torch.Tensor]:
    """The rows of all processes, by rank; their number may differ."""
    counts = [int(count) for count in _gather(torch.tensor([len(rows)], device=rows.device))]
    padded = rows.new_zeros(max(counts), rows.shape[1])
    padded[: len(rows)] = rows
    return [gathered[:count] for gathered, count in zip(_gather(padded), counts, strict=True)]
