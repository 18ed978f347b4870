# Copyright 2026 The hf_vqdit authors. Licensed under the Apache License, Version 2.0.
"""How a codebook learns: k-means start, moving average or gradient, restart of codes that nobody uses.

The models never change their codebooks. Training gathers what the encoder produced over all micro-batches and
processes of one optimizer step, in the order of the global batch, and changes the codebooks once, after the optimizer.
So gradient accumulation and checkpointing change nothing, and all processes hold the same codes bit for bit.
"""

from dataclasses import dataclass

import torch

from hf_vqdit.models.autoencoder_vqvae import VectorQuantizer, nearest_codes
from hf_vqdit.training.distributed import broadcast, gather_lengths, gather_rows, rank, sum_over_ranks


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
        optimizer (`torch.optim.Adam`, *optional*): Of a codebook on the gradient.
    """

    cluster_size: torch.Tensor
    vector_sum: torch.Tensor
    reservoir: torch.Tensor
    is_started: bool
    pending: list[tuple[torch.Tensor, torch.Tensor | None]]
    optimizer: torch.optim.Adam | None


# How the codes follow the vectors that choose them.
CODEBOOK_UPDATES = ("ema", "gradient")
ADAM_BETAS = (0.9, 0.99)


class CodebookTrainer:
    """Trains the codebooks of a tokenizer from what its encoders produce.

    Call [`observe`] for each micro-batch and [`step`] once an optimizer step, after the optimizer. While [`quantize`]
    is False the model is to be run with `quantize=False`.

    Codes follow their vectors in one of two ways. `"ema"`: as their moving average with Laplace smoothing (van den
    Oord 2017, appendix A.1), the averages started from the k-means masses so that they need no debiasing.
    `"gradient"`: by Adam, without weight decay, on the codebook loss mean |sg[z] - e|^2 (eq. 3 there, the term without
    beta). Its gradient follows from the same counts and sums, so that the codebook stays out of the networks' graph:
    clipping does not see it, weight averages copy it, and no process waits for a gradient that is not there before the
    start.

    Restart: a code whose share of the vectors falls below `restart_threshold / V` moves onto a vector of the
    reservoir, drawn in proportion to its squared distance from its code (the law of k-means++, Arthur & Vassilvitskii
    2007), so that what is served worst is served first.

    Args:
        quantizers (`dict[str, VectorQuantizer]`): The quantizers by name.
        start_step (`int`): Optimizer steps without quantization before the k-means start; at least 1.
        update (`str`, *optional*, defaults to `"ema"`): How codes follow their vectors: `"ema"` or `"gradient"`.
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
        ValueError: If `start_step` is below 1, `update` unknown, or `decay` outside [0, 1).
    """

    def __init__(
        self,
        quantizers: dict[str, VectorQuantizer],
        *,
        start_step: int,
        update: str = "ema",
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
        if update not in CODEBOOK_UPDATES:
            raise ValueError(f"`update` is {update!r}; it must be one of {CODEBOOK_UPDATES}.")
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` is {decay}; it must lie in [0, 1).")
        self.quantizers, self.update = quantizers, update
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
                optimizer=torch.optim.Adam([quantizer.codebook], betas=ADAM_BETAS) if update == "gradient" else None,
            )
            for name, quantizer in quantizers.items()
        }

    def start_from_codes(self, *names: str) -> None:
        """Takes codebooks for started as they are, each code as if it had been chosen once a step: for fine-tuning."""
        for name in names:
            state = self.states[name]
            state.cluster_size.fill_(1.0)
            state.vector_sum.copy_(self.quantizers[name].codebook)
            state.is_started = True

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
            kept = mask.flatten().nonzero().squeeze(1)
            vectors, codes = vectors[kept], codes[kept] if codes is not None else None
        self.states[name].pending.append((vectors, codes))

    @torch.no_grad()
    def step(self, global_step: int, learning_rate: float | None = None) -> dict[str, float]:
        """Applies what was observed to the codebooks, once, and forgets it.

        Args:
            global_step (`int`): Optimizer steps done, this one included (1 after the first).
            learning_rate (`float`, *optional*): That of the networks' optimizer; needed by a codebook on the gradient.

        Returns:
            `dict[str, float]`: `<name>_usage` (share of the codes that hold more than .01/V of the moving average),
            `<name>_perplexity` and `<name>_restarts`, once started.

        Raises:
            ValueError: If a codebook on the gradient gets no learning rate.
        """
        if self.update == "gradient" and learning_rate is None:
            raise ValueError("A codebook on the gradient needs the `learning_rate` of the step.")
        metrics, was_quantizing = {}, self.quantize
        for name, quantizer in self.quantizers.items():
            state = self.states[name]
            self._fill_reservoir(state, quantizer)
            if not state.is_started:
                if global_step >= self.start_step:
                    self._start(name, state, quantizer)
            elif was_quantizing:  # otherwise another codebook has not been started
                counts, sums = self._average(state)
                if self.update == "gradient":
                    self._descend(state, quantizer, counts, sums, learning_rate)
                else:
                    self._move_to_means(state, quantizer)
                metrics[f"{name}_restarts"] = self._restart(name, state, quantizer, global_step)
                share = state.cluster_size / state.cluster_size.sum()
                figures = [(share > 0.01 / len(share)).float().mean(), torch.special.entr(share).sum().exp()]
                metrics[f"{name}_usage"], metrics[f"{name}_perplexity"] = torch.stack(figures).tolist()
            state.pending.clear()
        return metrics

    # Reservoir and averages

    def _fill_reservoir(self, state: CodebookState, quantizer: VectorQuantizer) -> None:
        """Puts evenly spaced vectors of this step, in global-batch order, into the reservoir, and drops the oldest."""
        capacity = self.vectors_per_code * quantizer.codebook.shape[0]
        for vectors, _ in state.pending:
            lengths = gather_lengths(vectors)
            total, first = sum(lengths), sum(lengths[: rank()])
            num_picks = min(total, capacity)
            picks = torch.arange(num_picks) * total // max(1, num_picks)  # in the micro-batch of all processes
            picks = picks[(picks >= first) & (picks < first + len(vectors))] - first
            own = vectors[picks.to(vectors.device)]
            state.reservoir = torch.cat([state.reservoir, *gather_rows(own)])[-capacity:]

    def _average(self, state: CodebookState) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the moving averages; returns the counts and sums of this step, over all processes."""
        counts, sums = torch.zeros_like(state.cluster_size), torch.zeros_like(state.vector_sum)
        for vectors, codes in state.pending:
            counts.index_add_(0, codes, torch.ones_like(codes, dtype=counts.dtype))
            sums.index_add_(0, codes, vectors)
        sum_over_ranks(counts)
        sum_over_ranks(sums)
        state.cluster_size.lerp_(counts, 1 - self.decay)
        state.vector_sum.lerp_(sums, 1 - self.decay)
        return counts, sums

    def _move_to_means(self, state: CodebookState, quantizer: VectorQuantizer) -> None:
        """Puts each code where the moving average of its vectors is."""
        num_codes, total = len(state.cluster_size), state.cluster_size.sum()
        smoothed = (state.cluster_size + self.epsilon) / (total + num_codes * self.epsilon) * total
        means = state.vector_sum / smoothed.unsqueeze(1).clamp(min=torch.finfo(torch.float32).tiny)
        # A code that holds next to nothing keeps its place: its mean is noise.
        is_held = state.cluster_size > self.epsilon
        quantizer.codebook.copy_(torch.where(is_held.unsqueeze(1), quantizer.normalize(means), quantizer.codebook))

    @staticmethod
    def _descend(
        state: CodebookState,
        quantizer: VectorQuantizer,
        counts: torch.Tensor,
        sums: torch.Tensor,
        learning_rate: float,
    ) -> None:
        """One step of Adam on mean |sg[z] - e|^2."""
        codebook = quantizer.codebook
        # Of code e_k, whose n_k vectors sum to s_k: 2 (n_k e_k - s_k) / (N D).
        gradient = 2 * (counts.unsqueeze(1) * codebook - sums) / (counts.sum().clamp(min=1) * codebook.shape[1])
        if quantizer.l2_normalize:  # what the loss sees is e / |e|: along e it does not change
            gradient -= (gradient * codebook).sum(dim=1, keepdim=True) * codebook
        codebook.grad = gradient
        state.optimizer.param_groups[0]["lr"] = learning_rate
        state.optimizer.step()
        codebook.grad = None
        codebook.copy_(quantizer.normalize(codebook))

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
        if rank() == 0:
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
            broadcast(tensor)
        state.is_started = True

    @staticmethod
    def _vectors_a_step(state: CodebookState) -> float:
        total = torch.tensor(float(sum(len(vectors) for vectors, _ in state.pending)), device=state.reservoir.device)
        sum_over_ranks(total)
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
        if rank() == 0:
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
            broadcast(tensor)
        if state.optimizer is not None:  # where it is now, it has no momentum
            for moment in ("exp_avg", "exp_avg_sq"):
                state.optimizer.state[quantizer.codebook][moment][dead] = 0.0
        return len(dead)

    # Checkpoints

    def state_dict(self) -> dict[str, dict]:
        """Everything that the next step depends on, besides the codebooks themselves."""
        names = ("cluster_size", "vector_sum", "reservoir", "is_started")
        state_dict = {name: {key: getattr(state, key) for key in names} for name, state in self.states.items()}
        for name, state in self.states.items():
            if state.optimizer is not None:
                state_dict[name]["optimizer"] = state.optimizer.state_dict()
        return state_dict

    def load_state_dict(self, state_dict: dict[str, dict]) -> None:
        """Restores what [`state_dict`] returned.

        Raises:
            ValueError: If the codebooks' names, sizes or update differ from those of the checkpoint.
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
            saved = dict(saved)
            optimizer = saved.pop("optimizer", None)
            if (optimizer is None) != (state.optimizer is None):
                raise ValueError(
                    f"This run's codebooks have the update {self.update!r}, those of the checkpoint the other one of "
                    f"{CODEBOOK_UPDATES}: resume with the one that was saved."
                )
            if optimizer is not None:
                state.optimizer.load_state_dict(optimizer)
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
