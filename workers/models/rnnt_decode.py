"""Greedy decoding of RNN-T for many utterances at once; the tokens are those of the reference's decoders.py.

Lanes decode side by side. Each holds one utterance and takes the next that waits as soon as its own is
done, on the device, so the host only asks now and then whether all are. The prediction network's output
changes only with a token, so one step looks at several frames and stops at the first that is not blank.
"""

from __future__ import annotations

from typing import Protocol

import torch

# decoders.py of the reference, max_symbols_per_step.
MOST_TOKENS_A_FRAME = 30
# Frames that one step looks at.
FRAMES_A_STEP = 4
# Steps between two questions of the host, and in one CUDA graph.
STEPS_A_LOOK = 8
# Capacity in frames for each utterance before buffers must grow: 15 s, LibriSpeech's longest by the rules.
FRAMES_EACH = 252


class History(Protocol):
    """The prediction network; a state is (k, n, hidden)."""

    def first(self, count: int) -> torch.Tensor:
        """The state before any token."""

    def step(self, tokens: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The state after one more token of each."""


class Judge(Protocol):
    """The joint network."""

    def predicted(self, state: torch.Tensor) -> torch.Tensor:
        """A history's part of the joint hidden layer, (n, width)."""

    def scores(self, encoded: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Of every class, blank last, from the parts of frames and histories."""


class GreedyDecoder:
    """Decodes up to `capacity` utterances in `lanes` lanes, with buffers of its own."""

    def __init__(self, history: History, judge: Judge, lanes: int, capacity: int) -> None:
        self.lanes = lanes
        self.capacity = capacity
        self._history = history
        self._judge = judge
        self._frames = self._longest = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        state = history.first(lanes)
        self.device = state.device
        self._fresh = state, judge.predicted(state)
        self._state, self._predicted = (x.clone() for x in self._fresh)
        self._numbers = torch.arange(lanes, device=self.device)
        self._ahead = torch.arange(FRAMES_A_STEP, device=self.device)
        # By utterance; the last entry is what an idle lane has: no frame.
        self._lengths, self._first_token, self._written = (self._zeros(capacity + 1) for _ in range(3))
        # By lane: its utterance, the frame where it is, and how many tokens it has found there.
        self._utterance, self._time, self._burst = (self._zeros(lanes) for _ in range(3))
        self._waiting, self._count = self._zeros(), self._zeros()  # first utterance without a lane, and all
        self._busy = torch.zeros((), dtype=torch.bool, device=self.device)

    def allot(self, rows: int, frames: int) -> torch.Tensor:
        """The buffer for `rows` encoded frames, (rows, joint hidden), of utterances of `frames` at most."""
        if rows > self._frames or frames > self._longest:
            self._frames = max(rows, self.capacity * FRAMES_EACH)
            self._longest = max(frames, FRAMES_EACH)
            self._encoded = self._predicted.new_zeros((self._frames, self._predicted.shape[1]))
            self._starts = self._zeros(self._longest)
            size = self._frames * MOST_TOKENS_A_FRAME + 1  # the last takes what no lane has to say
            self._tokens = torch.zeros(size, dtype=torch.uint8, device=self.device)
            self._graph = None
        return self._encoded[:rows]

    def decode(
        self, starts: torch.Tensor, lengths: torch.Tensor, wanted: torch.Tensor, graph: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens int64 (total,) of the utterances in the order `wanted`, and how many each has, int64 (n,).

        What `allot` gave holds frame t of utterance i in row starts[t] + i; `lengths` int64 (n,) fall.
        `graph` lets a CUDA device run the steps as a graph.
        """
        self._begin(starts, lengths)
        if graph and self._graph is None:
            self._capture()
            self._begin(starts, lengths)
        run = self._graph.replay if graph and self._graph is not None else self._steps
        for _ in range(-(-len(starts) // (FRAMES_A_STEP * STEPS_A_LOOK))):  # the longest takes no fewer
            run()
        while self._busy.item():
            run()
        return self._collected(wanted)

    def _begin(self, starts: torch.Tensor, lengths: torch.Tensor) -> None:
        count = len(lengths)
        self._starts[: len(starts)].copy_(starts)
        self._lengths.zero_()
        self._lengths[:count].copy_(lengths)
        self._first_token[:count].copy_((torch.cumsum(lengths, 0) - lengths) * MOST_TOKENS_A_FRAME)
        self._written.zero_()
        self._count.fill_(count)
        self._waiting.fill_(self.lanes)
        self._utterance.copy_(torch.where(self._numbers < count, self._numbers, self.capacity))
        self._time.zero_()
        self._burst.zero_()
        self._state.copy_(self._fresh[0])
        self._predicted.copy_(self._fresh[1])

    def _capture(self) -> None:
        """Record some steps as a CUDA graph; what they compute meanwhile is thrown away."""
        for _ in range(2):
            self._steps()
        torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._steps()
        self._graph = graph

    def _steps(self) -> None:
        for _ in range(STEPS_A_LOOK):
            self._step()
        self._busy.copy_((self._time < self._lengths[self._utterance]).any())

    def _step(self) -> None:
        """Every lane goes to its next token, or over some frames that have none."""
        left = self._lengths[self._utterance] - self._time
        token, skipped, found = self._look_ahead(left)
        self._write(token, found)
        # 30 tokens of one frame, and decoding goes to the next frame whether or not there are more.
        burst = torch.where(skipped == 0, self._burst, 0) + found
        full = burst == MOST_TOKENS_A_FRAME
        self._burst.copy_(burst * ~full)
        self._time.add_(skipped + full)
        state = self._history.step(token, self._state)
        following = state, self._judge.predicted(state)
        done = left <= skipped + full
        for held, new, fresh in zip((self._state, self._predicted), following, self._fresh, strict=True):
            chosen = torch.where(found.unsqueeze(1), new, held)
            torch.where(done.unsqueeze(1), fresh, chosen, out=held)
        self._refill(done)

    def _look_ahead(self, left: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of every lane: its next token, the frames before it, and whether there is one within reach."""
        frame = (self._time.unsqueeze(1) + self._ahead).clamp_(max=self._longest - 1)
        rows = (self._starts[frame] + self._utterance.unsqueeze(1)).clamp_(max=self._frames - 1)
        scores = self._judge.scores(self._encoded[rows], self._predicted.unsqueeze(1))
        tokens = scores.argmax(-1)
        spoken = (tokens != scores.shape[-1] - 1) & (self._ahead < left.unsqueeze(1))
        found, place = spoken.max(1)  # the first of equals
        token = tokens.gather(1, place.unsqueeze(1)).squeeze(1)
        return torch.where(found, token, 0), torch.where(found, place, FRAMES_A_STEP), found

    def _write(self, token: torch.Tensor, found: torch.Tensor) -> None:
        written = self._written[self._utterance]
        place = torch.where(found, self._first_token[self._utterance] + written, len(self._tokens) - 1)
        self._tokens[place] = token.to(torch.uint8)
        self._written[self._utterance] = written + found

    def _refill(self, done: torch.Tensor) -> None:
        """Lanes that are done take the utterances that wait, in order; when none do, they idle."""
        taken = self._waiting + torch.cumsum(done, 0) - 1
        following = torch.where(taken < self._count, taken, self.capacity)
        self._utterance.copy_(torch.where(done, following, self._utterance))
        self._time.mul_(~done)
        self._burst.mul_(~done)
        self._waiting.add_(done.sum())

    def _collected(self, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        written = self._written[wanted]
        owner = torch.repeat_interleave(written)
        within = torch.arange(len(owner), device=self.device) - (torch.cumsum(written, 0) - written)[owner]
        return self._tokens[self._first_token[wanted][owner] + within].long(), written

    def _zeros(self, *shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)
