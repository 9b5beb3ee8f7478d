"""Gated blocks with other arguments and outputs than one image tensor: they work, or one line says why not."""

from __future__ import annotations

import pytest
import torch
from layer_models import seeded
from torch import nn
from torch.nn import functional as F

import fractrain
from fractrain.layers.convert import quant_layers
from fractrain.methods.base import MethodContext
from fractrain.methods.dfq import DFQ
from fractrain.util.errors import ConfigError

WIDTH, WORDS, SAMPLES = 8, 6, 6  # as many words as samples: shapes do not tell one from the other


class Decoder(nn.Module):
    """A decoder layer as transformers calls it: masks and rotary tables by name, several outputs."""

    attention_type = "full"

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, hidden_states, attention_mask=None, position_embeddings=None, past_key_values=None, use_cache=False
    ):
        cos, sin = position_embeddings
        q, k = ((p(hidden_states) * cos + sin) for p in (self.q_proj, self.k_proj))
        bias = torch.arange(WORDS, dtype=q.dtype)[None, None] / 10  # of all samples
        scores = q @ k.transpose(1, 2) + attention_mask + bias
        y = hidden_states + self.out(scores.softmax(-1) @ self.v_proj(hidden_states))
        return y, {"bias": bias, "top": scores.argmax(-1), "none": None}


class Rows(nn.Module):
    """Vectors in a dict of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs, *, scale: float = 1.0):
        x, shift = inputs["pair"]
        return {"pair": [x + scale * torch.relu(self.linear(x)) + shift, shift]}


class Sequence1d(nn.Module):
    """A convolution over time, ``[N, C, T]``, conditioned on a vector of each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shortcut = nn.Conv1d(WIDTH, WIDTH, 3, padding=1), None

    def forward(self, x, emb):
        return x + torch.relu(self.conv(x) + emb[:, :, None])


class Windows(nn.Module):
    """A linear layer on windows of ``[N, H, W, C]``: its first axis is not the samples'."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        n, h, w, c = x.shape
        parts = x.view(n, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
        y = self.linear(parts).view(n, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(n, h, w, c)
        return x + y


def decoder_inputs():
    mask = torch.zeros(SAMPLES, WORDS, WORDS)
    mask[:, :, 4:] = torch.arange(SAMPLES)[:, None, None] * -2.0
    tables = (torch.randn(WORDS, WIDTH), torch.randn(WORDS, WIDTH))  # rows of words, as many as samples
    return (torch.randn(SAMPLES, WORDS, WIDTH),), {"attention_mask": mask, "position_embeddings": tables}


KINDS = {
    "decoder": (Decoder, decoder_inputs),
    "dict": (Rows, lambda: (({"pair": [torch.randn(SAMPLES, WIDTH), torch.randn(SAMPLES, 1)]},), {"scale": 2.0})),
    "time": (Sequence1d, lambda: ((), {"emb": torch.randn(SAMPLES, WIDTH), "x": torch.randn(SAMPLES, WIDTH, 5)})),
    "windows": (Windows, lambda: ((torch.randn(SAMPLES, 4, 4, WIDTH),), {})),
    "video": (lambda: nn.Sequential(nn.Conv3d(WIDTH, WIDTH, 1)), lambda: ((torch.randn(SAMPLES, WIDTH, 2, 3, 3),), {})),
}


def flat(value) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_gets_what_the_block_returns_at_its_choice(kind: str, training: bool) -> None:
    build, inputs = KINDS[kind]
    method = DFQ(bits=(3, 4, 6), grad_bits=(6, 6, 8))
    net = method.prepare(seeded(lambda: nn.Sequential(build())), MethodContext(blocks=["0"]))
    args, kwargs = inputs()
    choice = torch.tensor([0, 1, 2, 1, 2, 0])
    gated = net[0]
    gated._gate = (lambda index, pooled: torch.eye(3)[choice].requires_grad_(),)
    method.state.ledger.enabled = False
    gated(*args, **kwargs)  # ranges for evaluation
    net.train(training)
    ours = flat(gated(*args, **kwargs))
    for k in range(3):
        for layer in quant_layers(gated.block):
            layer.precision = gated.precisions[k]
        alone = flat(gated.block(*args, **kwargs))
        assert [t.shape for t in ours] == [t.shape for t in alone]
        for mine, wanted in zip(ours, alone, strict=True):
            rows = choice == k if len(mine) == SAMPLES else slice(None)
            torch.testing.assert_close(mine[rows], wanted[rows])


class Words(nn.Module):
    """A model of decoder layers that reads an attribute of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(20, WIDTH), nn.ModuleList(Decoder() for _ in range(2))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, tokens, attention_mask=None):
        x, tables = self.embed(tokens), (torch.ones(1, WORDS, WIDTH), torch.zeros(1, WORDS, WIDTH))
        mask = (1 - attention_mask[:, None].float()) * -9
        for layer in self.layers:
            assert layer.attention_type == "full"
            x, _ = layer(x, attention_mask=mask, position_embeddings=tables)
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """PyTorch's encoder, which looks into its layers and calls them by name."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=batch_first)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 4)

    def forward(self, tokens, attention_mask=None):
        return self.head(self.encoder(self.embed(tokens), src_key_padding_mask=attention_mask == 0).mean(1))


class Patches(nn.Module):
    """Blocks on windows, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Conv2d(3, WIDTH, 1), nn.Sequential(Windows(), Windows()), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.layers(self.stem(x).permute(0, 2, 3, 1)).mean((1, 2)))


def token_inputs():
    mask = torch.ones(SAMPLES, WORDS, dtype=torch.int64)
    mask[:, 5:] = 0
    return (torch.randint(0, 20, (SAMPLES, WORDS)),), {"attention_mask": mask}


MODELS = {
    "words": (Words, ["layers.0", "layers.1"], token_inputs),
    "encoder": (Encoder, ["encoder.layers.0", "encoder.layers.1"], token_inputs),
    "patches": (Patches, ["layers.0", "layers.1"], lambda: ((torch.randn(SAMPLES, 3, 4, 4),), {})),
}


@pytest.mark.parametrize("method", ["dfq", "fractrain"])
@pytest.mark.parametrize("name", MODELS)
def test_models_with_such_blocks_train_and_are_counted_whole(name: str, method: str) -> None:
    build, blocks, inputs = MODELS[name]
    args, kwargs = inputs()
    plain = fractrain.attach("fp32", seeded(build))
    plain.model(*args, **kwargs)
    session = fractrain.attach(method, seeded(build), blocks=blocks)
    optimizer = torch.optim.SGD(session.model.parameters(), 0.1)
    for _ in range(2):
        session.loss(F.cross_entropy(session.model(*args, **kwargs), torch.arange(SAMPLES) % 4)).backward()
        optimizer.step()
        optimizer.zero_grad()
        session.step()
    assert session.report().macs == plain.report().macs
    session.model.eval()
    with torch.no_grad():
        assert session.model(*args, **kwargs).isfinite().all()
    for phase, passes in (("train", 2), ("eval", 1)):
        rows = [r for r in session.ledger.rows() if (r.phase, r.product) == (phase, "FW")]
        assert sum(r.macs for r in rows if not r.layer.endswith(".gate")) == passes * plain.report().macs


def test_the_proposal_for_an_encoder_can_be_gated() -> None:
    with pytest.raises(ConfigError, match=r"encoder\.layers\.0.*encoder\.layers\.1"):
        fractrain.attach("dfq", Encoder())


class Cache:
    """Grows with every call, as a cache of keys does."""


class Appends(Rows):
    def forward(self, inputs):
        inputs["pair"].append(0.0)
        return inputs["pair"][0]


class Lost(Rows):
    def forward(self, inputs):
        return self.linear(inputs).sum(0)


class Shared(Rows):
    def forward(self, inputs):
        y = self.linear(inputs)
        return y, y.mean()


def refuse(build, args, kwargs, words: str) -> None:
    session = fractrain.attach("dfq", seeded(lambda: nn.Sequential(build())), blocks=["0"])
    with pytest.raises(ConfigError, match=words) as error:
        session.model[0](*args, **kwargs)
    assert "\n" not in str(error.value)
    assert "block '0'" in str(error.value)


def test_what_cannot_run_several_times_for_one_call_is_refused_in_one_line() -> None:
    (x,), kwargs = decoder_inputs()
    refuse(Decoder, (x,), {**kwargs, "past_key_values": Cache()}, r"takes a Cache, .*use_cache=False")
    refuse(Appends, ({"pair": [torch.randn(4, WIDTH)]},), {}, "changes its arguments in place")
    refuse(Lost, (torch.randn(4, WIDTH),), {}, r"returns Tensor without a tensor that has a row per sample \(4 here\)")
    refuse(Shared, (torch.randn(4, WIDTH),), {}, "has no row per sample and depends on the precision")
    refuse(Lost, (torch.randint(0, 9, (4,)),), {}, r"takes int64 \[4\]; none has samples")
    refuse(Lost, (torch.randn(WIDTH),), {}, r"takes float32 \[8\]; none has samples")


def test_blocks_that_no_gate_can_be_put_before_are_refused_at_attach() -> None:
    with pytest.raises(ConfigError, match=r"'layers' is a ModuleList, which has no forward"):
        fractrain.attach("dfq", Words(), blocks=["layers"])
    with pytest.raises(ConfigError, match=r"samples along its second axis.*batch_first=True"):
        fractrain.attach("dfq", Encoder(batch_first=False), blocks=["encoder.layers.0"])


def test_widths_per_sample_need_a_row_per_sample() -> None:
    session = fractrain.attach("dfq", seeded(Patches), blocks=["layers.0"], forward="selected")
    with pytest.raises(ConfigError, match=r"layers\.0\.linear: 24 rows of 6 samples.*forward=all"):
        session.model(torch.randn(SAMPLES, 3, 4, 4))


@pytest.mark.parametrize("training", [True, False])
def test_slu_gives_a_block_the_open_samples_of_all_arguments(training: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Sequence1d(), Sequence1d()

        def forward(self, x, emb):
            return self.b(self.a(x, emb=emb), emb=emb)

    session = fractrain.attach("slu", seeded(Net), blocks=["a", "b"], threshold="skipnet")
    x, emb = torch.randn(SAMPLES, WIDTH, 5), torch.randn(SAMPLES, WIDTH)
    block, seen = session.model.b, []
    shut = torch.tensor([-1.0, 1, 1, -1, 1, -1])
    block._gate[0].head.register_forward_hook(lambda *_: shut[:, None].clone().requires_grad_())
    block.block.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["emb"]), with_kwargs=True)
    session.model.train(training)
    ours = session.model(x, emb=emb)
    first = session.model.a(x, emb=emb)
    opened = block.block(first, emb=emb)
    torch.testing.assert_close(ours, torch.where(shut[:, None, None] > 0, opened, first))
    assert any(torch.equal(s, emb[shut > 0]) for s in seen)


def test_slu_refuses_blocks_that_return_more_than_a_tensor() -> None:
    class Two(Sequence1d):
        def forward(self, x, emb):
            return super().forward(x, emb), emb

    session = fractrain.attach("slu", nn.Sequential(Sequence1d(), Two()), blocks=["0", "1"])
    with pytest.raises(ConfigError, match=r"block '1' \(Two\) returns tuple"):
        session.model[1](torch.randn(SAMPLES, WIDTH, 5), torch.randn(SAMPLES, WIDTH))


def test_checkpointing_inside_of_a_block_is_refused_where_it_would_run_at_another_precision() -> None:
    class Inside(Rows):
        def forward(self, inputs):
            return torch.utils.checkpoint.checkpoint(lambda x: torch.tanh(self.linear(x)), inputs, use_reentrant=False)

    session = fractrain.attach("dfq", seeded(lambda: nn.Sequential(Inside())), blocks=["0"])
    loss = session.model(torch.randn(4, WIDTH)).sum()
    with pytest.raises(ConfigError, match=r"0\.linear: activation checkpointing inside of a gated block"):
        loss.backward()
