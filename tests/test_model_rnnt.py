"""RNN-T: the published names, features and tokens against plain restatements of the reference, any batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from workers.models import ModelError, open_model, rnnt, rnnt_decode
from workers.models.log_mel import LogMel, Totals
from workers.models.mel_filters import mel_filters
from workers.models.rnnt import Rnnt

TIME_BUDGET_S = 15
SMALL = {"encoder_n_hidden": 48, "pred_n_hidden": 24, "joint_n_hidden": 32}
WILD = {"prediction.embed.weight": 10.0, "joint.net.0.weight": 4.0, "joint.net.3.weight": 8.0}
BLANK_BIAS = 3.0
LENGTHS = [9600, 9601, 24017, 320, 15999, 8000, 5000]

# (row, bin) -> value of librosa.filters.mel(sr=16000, n_fft=512, n_mels=80), librosa 0.11.0.
LIBROSA = {
    (0, 1): 0.02253456,
    (0, 2): 0.00863771,
    (20, 25): 0.026295703,
    (20, 26): 0.00487657,
    (40, 55): 0.014444176,
    (40, 56): 0.008761479,
    (79, 246): 0.003252148,
    (79, 247): 0.003155337,
}
LIBROSA_SUM = 2.558260679244995


def published_shapes() -> dict[str, tuple[int, ...]]:
    """DistributedDataParallel_1576581068.9962234-epoch-100.pt, as the reference's modules shape it."""
    shapes: dict[str, tuple[int, ...]] = {
        "audio_preprocessor.featurizer.fb": (1, 80, 257),
        "audio_preprocessor.featurizer.window": (320,),
        "prediction.embed.weight": (28, 320),
        "joint_net.0.weight": (512, 1344),
        "joint_net.0.bias": (512,),
        "joint_net.3.weight": (29, 512),
        "joint_net.3.bias": (29,),
    }
    for name, hidden, inputs in (
        ("encoder.pre_rnn", 1024, [240, 1024]),
        ("encoder.post_rnn", 1024, [2048, 1024, 1024]),
        ("prediction.dec_rnn", 320, [320, 320]),
    ):
        for layer, width in enumerate(inputs):
            shapes[f"{name}.lstm.weight_ih_l{layer}"] = (4 * hidden, width)
            shapes[f"{name}.lstm.weight_hh_l{layer}"] = (4 * hidden, hidden)
            shapes[f"{name}.lstm.bias_ih_l{layer}"] = (4 * hidden,)
            shapes[f"{name}.lstm.bias_hh_l{layer}"] = (4 * hidden,)
    return shapes


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    found = []
    for samples in LENGTHS:
        loud = np.abs(np.sin(np.arange(samples) / 3000 + rng.uniform(0, 3)))
        found.append((0.1 * loud * rng.standard_normal(samples)).astype(np.float32))
    found[2][3000:9000] = 0.0  # digital silence
    return found


def small(seed: int = 1, **options: Any) -> Rnnt:
    """Wild weights, that talk now much and now little; float64, so that batches of any size decide alike."""
    module = open_model("rnnt", {**SMALL, **options})
    assert isinstance(module, Rnnt)
    module.eval().requires_grad_(False).double()
    draw = torch.Generator().manual_seed(seed)
    for name, value in module.named_parameters():
        value.normal_(0.0, WILD.get(name, 1.5) / value.shape[-1] ** 0.5, generator=draw)
    scores = module.joint.net[3]
    scores.weight.sub_(scores.weight.mean(1, keepdim=True))
    scores.bias[-1] += BLANK_BIAS
    return module


@torch.inference_mode()
def run(module: Rnnt, sounds: list[np.ndarray]) -> list[list[int]]:
    counts = torch.tensor([len(sound) for sound in sounds])
    tokens, written = module(torch.from_numpy(np.concatenate(sounds)), counts)
    assert tokens.dtype == written.dtype == torch.int64 and len(tokens) == written.sum()
    return [part.tolist() for part in tokens.split(written.tolist())]


def features_one_by_one(sound: np.ndarray) -> torch.Tensor:
    """The reference's features.py for one waveform, in float64: (spliced frames, 240)."""
    x = torch.from_numpy(sound).double()
    x = torch.cat([x[:1], x[1:] - 0.97 * x[:-1]])
    window = torch.hann_window(320, periodic=False, dtype=torch.float64)
    spectrum = torch.stft(x[None], 512, 160, 320, window, center=True, return_complex=True)[0]
    power = spectrum.abs().square() + 1e-10
    log_mel = torch.log(torch.from_numpy(mel_filters(16000, 512, 80)).double() @ power + 1e-20)
    stacked = torch.cat([log_mel, torch.zeros(80, 2)], 1)
    spliced = torch.cat([stacked[:, n : n + log_mel.shape[1]] for n in range(3)])[:, ::3]
    frames = spliced[:, : ((len(sound) + 159) // 160 + 2) // 3]
    return ((frames - frames.mean(1, keepdim=True)) / (frames.std(1, keepdim=True) + 1e-5)).T


def tokens_one_by_one(module: Rnnt, sound: np.ndarray) -> list[int]:
    """The reference's encoder and decoders.py for one waveform."""
    counts = np.array([len(sound)])
    features = LogMel()(torch.from_numpy(sound), torch.from_numpy(counts), Totals(counts)).double()
    x, _ = module.encoder.pre_rnn["lstm"](features[:, None])
    if len(x) % 2:
        x = torch.cat([x, torch.zeros_like(x[:1])])
    encoded, _ = module.encoder.post_rnn["lstm"](torch.cat([x[::2], x[1::2]], 2))
    lstm, found, state = module.prediction.dec_rnn["lstm"], [], None
    history, after = lstm(torch.zeros(1, 1, SMALL["pred_n_hidden"], dtype=torch.float64))
    for frame in encoded[:, 0]:
        for _ in range(30):
            token = int(module.joint.net(torch.cat([frame, history[0, 0]])).argmax())
            if token == 28:
                break
            found.append(token)
            state = after
            history, after = lstm(module.prediction.embed(torch.tensor([[token]])), state)
    return found


def test_the_published_checkpoint_loads_strictly() -> None:
    with torch.device("meta"):
        module = rnnt.build(rnnt.OPTIONS, False)
        state = {name: torch.empty(shape) for name, shape in published_shapes().items()}
    module.load_state_dict(module.load_published(state), strict=True, assign=True)
    assert len(state) == 35


def test_mel_filters_are_slaneys() -> None:
    filters = mel_filters(16000, 512, 80)
    assert filters.shape == (80, 257) and filters.dtype == np.float32
    for (row, bin_), value in LIBROSA.items():
        assert filters[row, bin_] == pytest.approx(value, abs=1e-8)
    assert filters.sum() == pytest.approx(LIBROSA_SUM, rel=1e-6)


def test_features_are_those_of_each_waveform_alone(waveforms: list[np.ndarray]) -> None:
    sounds = [sound for sound in waveforms if len(sound) > 480]  # of one frame there is no deviation
    counts = np.array([len(sound) for sound in sounds])
    found = LogMel()(torch.from_numpy(np.concatenate(sounds)), torch.from_numpy(counts), Totals(counts))
    parts = found.split([((n + 159) // 160 + 2) // 3 for n in counts.tolist()])
    for sound, part in zip(sounds, parts, strict=True):
        assert part.shape[1] == 240 and part.dtype == torch.float32
        torch.testing.assert_close(part.double(), features_one_by_one(sound), rtol=0, atol=2e-4)


@pytest.mark.parametrize(("seed", "lanes"), [(1, 4), (2, 1), (3, 64)])
def test_a_batch_says_what_each_utterance_says_alone(
    waveforms: list[np.ndarray], seed: int, lanes: int
) -> None:
    module = small(seed, lanes=lanes)
    expected = [tokens_one_by_one(module, sound) for sound in waveforms]
    assert sum(map(len, expected)) > 100 and len({token for said in expected for token in said}) > 5
    assert run(module, waveforms) == expected
    assert run(module, waveforms[::-1]) == expected[::-1]  # buffers are used again
    assert run(module, waveforms[3:4]) == expected[3:4]


def test_no_frame_has_more_than_30_tokens(waveforms: list[np.ndarray]) -> None:
    module = small()
    module.joint.net[3].bias[-1] = -1e9  # never blank
    said = run(module, waveforms[:3])
    assert [len(tokens) for tokens in said] == [10 * 30, 11 * 30, 26 * 30]
    assert said == [tokens_one_by_one(module, sound) for sound in waveforms[:3]]
    module.joint.net[3].bias[-1] = 1e9
    assert run(module, waveforms) == [[]] * len(waveforms)


def test_samples_without_audio_and_columns_of_rows_are_taken(waveforms: list[np.ndarray]) -> None:
    module = small()
    rows = torch.from_numpy(np.concatenate([*waveforms[:2], np.ones(77, np.float32)]))[:, None]
    counts = torch.tensor([0, LENGTHS[0], LENGTHS[1], 0])
    with torch.inference_mode():
        tokens, written = module(rows, counts)
        nothing = module(rows, torch.zeros(3, dtype=torch.int64))
    expected = run(module, waveforms[:2])
    assert written.tolist() == [0, len(expected[0]), len(expected[1]), 0]
    assert tokens.tolist() == expected[0] + expected[1]
    assert len(nothing[0]) == 0 and nothing[1].tolist() == [0, 0, 0]


def test_utterances_longer_than_the_buffers_are_decoded(
    waveforms: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(small(), waveforms)
    monkeypatch.setattr(rnnt_decode, "FRAMES_EACH", 8)
    module = small()
    assert [run(module, [sound])[0] for sound in waveforms] == expected
    assert run(module, waveforms) == expected


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
def test_seeded_weights_say_a_token_for_each_encoded_frame(
    waveforms: list[np.ndarray], precision: torch.dtype
) -> None:
    torch.manual_seed(4)
    module = rnnt.build({**rnnt.OPTIONS, **SMALL}, False).eval().requires_grad_(False)
    assert module.encoder.pre_rnn["lstm"].bias_ih_l0[48:96].tolist() == [1.0] * 48
    said = run(module.to(precision), waveforms)
    assert [len(tokens) for tokens in said] == [-(-n // 960) for n in LENGTHS]
    assert len({token for tokens in said for token in tokens}) > 1


def test_odd_options_are_refused() -> None:
    refused: list[Mapping[str, Any]] = [{"lanes": 0}, {"pred_n_hidden": 1.5}]
    for options in refused:
        with pytest.raises(ModelError, match="is a whole number from"):
            open_model("rnnt", options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_graphs_say_the_same(waveforms: list[np.ndarray]) -> None:
    expected = run(small(), waveforms)
    for graph in (False, True):
        module = small(lanes=4, decode_graph=graph).cuda()
        for _ in range(2):
            with torch.inference_mode():
                rows = torch.from_numpy(np.concatenate(waveforms)).cuda()
                tokens, written = module(rows, torch.tensor(LENGTHS))
            assert [part.tolist() for part in tokens.split(written.tolist())] == expected
