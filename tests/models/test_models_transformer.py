"""Transformer-base: counts by hand, causality, likelihoods, both ends, and every method on a tiny one."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from method_groups import FLOAT_METHODS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fractrain.cost.ledger import Ledger
from fractrain.layers.convert import convert, quant_layers
from fractrain.layers.state import QuantState
from fractrain.methods.base import Method, MethodContext
from fractrain.methods.registry import MethodRegistry
from fractrain.models import registry
from fractrain.models.adaptive import cutoffs_for
from fractrain.models.macs import forward_macs, layer_macs
from fractrain.models.transformer import TransformerLM
from fractrain.numerics.precision import Precision, fractrain_precision
from fractrain.util.errors import ConfigError

WORDS, LAYERS, WIDTH, HIDDEN, HEADS = 100, 2, 32, 64, 4
METHODS = MethodRegistry.discover([])
CUTOFFS: tuple[tuple[int, ...], ...] = ((), (20, 60))


def tiny(cutoffs: tuple[int, ...] = (), dropout: float = 0.0, layers: int = LAYERS) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(WORDS, layers, WIDTH, HIDDEN, HEADS, dropout, cutoffs)


def text(n: int = 3, t: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    words = torch.randint(WORDS, (n, t + 1), generator=torch.Generator().manual_seed(seed))
    return words[:, :-1], words[:, 1:]


def prepare(name: str, model: nn.Module, **settings: object) -> tuple[Method, nn.Module, Ledger]:
    method = METHODS.create(name, settings)
    context = MethodContext(batch_size=3, total_steps=4, steps_per_epoch=4)
    return method, method.prepare(model, context), context.ledger


def train(method: Method, model: nn.Module, steps: int, lr: float = 0.1, batch: int = 3) -> list[float]:
    """Losses of some steps on the same text."""
    x, y = text(batch)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    losses = []
    model.train()
    method.on_epoch_start(0)
    for step in range(steps):
        method.on_step_start(step)
        loss = model(x, y).mean()
        extra = method.extra_loss()
        optimizer.zero_grad()
        (loss if extra is None else loss + extra).backward()
        optimizer.step()
        method.on_step_end(step, loss.detach(), None if extra is None else extra.detach())
        losses.append(float(loss.detach()))
    method.on_epoch_end(0, losses[-1])
    return losses


# -- counts ----------------------------------------------------------------------------------------------------------


def macs_by_hand(length: int, layers: int, width: int, hidden: int) -> int:
    """Four projections, two products over all positions, two FFN layers; per token, times tokens and layers."""
    return length * layers * (4 * width * width + 2 * length * width + 2 * width * hidden)


def parameters_by_hand(words: int, cutoffs: tuple[int, ...], layers: int, width: int, hidden: int) -> int:
    layer = 4 * (width * width + width) + 2 * width * hidden + hidden + width + 2 * 2 * width
    bands = [b - a for a, b in zip((0, *cutoffs), (*cutoffs, words), strict=True)]
    ends = (bands[0] + len(cutoffs)) * width  # the head's table, with one row per further band
    for i, size in enumerate(bands[1:], start=1):
        narrow = width // 4**i
        ends += size * narrow + 2 * narrow * width  # table, projection out of the body and into it
    return layers * layer + 2 * width + ends


@pytest.mark.parametrize(("dataset", "words"), [("wikitext103", 267_735), ("wikitext2", 33_278)])
def test_base_model_has_its_parameters_and_macs(dataset: str, words: int) -> None:
    info = registry.info("transformer_base")
    model = registry.build("transformer_base", words, (512,))
    expected = parameters_by_hand(words, cutoffs_for(words), 6, 512, 2048)
    assert sum(p.numel() for p in model.parameters()) == expected == info.parameters[dataset]
    assert forward_macs(model, (512,)) == macs_by_hand(512, 6, 512, 2048) == info.forward_macs[dataset]
    assert len(model.gateable_blocks()) == info.blocks == 6


@pytest.mark.parametrize("length", [1, 7])
def test_macs_of_a_sequence_layer_by_layer_and_by_torchs_counter(length: int) -> None:
    model = tiny()
    counted = layer_macs(model, (length,))
    one = {n: c for n, c in counted.items() if n.startswith("layers.0.")}
    attention = length * length * WIDTH
    assert one["layers.0.attention.scores"] == one["layers.0.attention.mix"] == attention
    assert sum(counted.values()) == macs_by_hand(length, LAYERS, WIDTH, HIDDEN) == 2 * sum(one.values())
    assert model.training
    x, _ = text(1, length)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        explicit = convert(model.eval(), Precision(), QuantState(), strict=False)
        for layer in explicit.layers:
            layer.attention.scores.precision = fractrain_precision(
                8, 8, 8
            )  # explicit products, as the counter knows no fused one
        explicit(x)
    assert counter.get_total_flops() == 2 * sum(counted.values())


def test_ledger_counts_a_training_step_exactly() -> None:
    method, model, ledger = prepare("fp32", tiny((20, 60)))
    x, y = text()
    assert model(x, y).sum().backward() is None
    body = {"FW": 0, "EB": 0, "GC": 0}
    ends: dict[str, int] = {}
    for row in ledger.rows():
        if row.layer.startswith("layers."):
            body[row.product] += row.macs
        elif row.product == "FW":
            ends[row.layer] = row.macs
    assert body == dict.fromkeys(body, 3 * macs_by_hand(9, LAYERS, WIDTH, HIDDEN))
    for i, (low, high) in enumerate(((20, 60), (60, 100))):
        narrow = WIDTH // 4 ** (i + 1)
        asked, read = (int(((t >= low) & (t < high)).sum()) for t in (y, x))
        assert ends[f"head.tail.{i}.0"] == asked * narrow * WIDTH
        assert ends[f"head.tail.{i}.1"] == asked * narrow * (high - low)
        assert ends[f"embedding.projections.{i}"] == read * narrow * WIDTH
    assert ends["head.head"] == x.numel() * WIDTH * 22
    assert method.name == "fp32"


def test_cutoffs_follow_the_vocabulary() -> None:
    assert cutoffs_for(267_735) == (20_000, 60_000, 200_000)
    assert cutoffs_for(10_000) == ()
    assert cutoffs_for(33_278) == (2_485, 7_457, 24_858)
    for words in (10_001, 50_000, 1_000_000):
        cuts = cutoffs_for(words)
        assert 0 < cuts[0] < cuts[1] < cuts[2] < words


# -- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize("name", ["plain", "fp32", "sbm"])
def test_no_output_depends_on_a_later_word(cutoffs: tuple[int, ...], name: str) -> None:
    model: nn.Module = tiny(cutoffs)
    if name != "plain":  # in evaluation, where ranges are fixed: while training, all words share them
        method, model, _ = prepare(name, model)
        train(method, model, 2)
    model.eval()
    x, _ = text()
    with torch.no_grad():
        before = model(x)
        for t in (1, 5, 8):
            changed = x.clone()
            changed[:, t] = (x[:, t] + 37) % WORDS
            after = model(changed)
            torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-5)
            assert float((after[:, t] - before[:, t]).abs().max()) > 1e-2


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_likelihoods_are_those_of_an_explicit_softmax(cutoffs: tuple[int, ...]) -> None:
    model = tiny(cutoffs).double()
    x, y = text()
    hidden = model(x)
    if cutoffs:  # probability of a word of a further band = that of the band times that within it
        head = hidden @ model.head.head.weight.t()
        bands = [F.softmax(tail(hidden), -1) for tail in model.head.tail]
        first = F.softmax(head, -1)
        p = torch.cat([first[..., :20], *(first[..., 20 + i, None] * b for i, b in enumerate(bands))], -1)
    else:
        p = F.softmax(hidden @ model.embedding.weight.t(), -1)
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 9, dtype=torch.float64))
    nll = model(x, y)
    assert nll.shape == y.shape
    torch.testing.assert_close(nll, -p.gather(-1, y[..., None]).squeeze(-1).log())
    torch.testing.assert_close(model.nll(hidden, y), nll)


def test_attention_is_the_definition_and_both_paths_agree() -> None:
    layer = tiny().layers[0].attention.double()
    x = torch.randn(2, 6, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (f(x).view(2, 6, HEADS, -1) for f in (layer.query, layer.key, layer.value))
    out = torch.zeros(2, 6, HEADS, WIDTH // HEADS, dtype=torch.float64)
    for n in range(2):
        for h in range(HEADS):
            for t in range(6):
                scores = torch.stack([q[n, t, h] @ k[n, s, h] for s in range(t + 1)]) / math.sqrt(WIDTH // HEADS)
                out[n, t, h] = scores.softmax(0) @ v[n, : t + 1, h]
    expected = layer.out(out.reshape(2, 6, WIDTH))
    torch.testing.assert_close(layer(x), expected)
    layer.scores.is_float = False
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("cutoffs", CUTOFFS)
def test_words_are_looked_up_in_the_tables_of_the_head(cutoffs: tuple[int, ...]) -> None:
    model = tiny(cutoffs)
    words = torch.arange(WORDS).view(4, 25)
    vectors = model._embed(words).view(WORDS, WIDTH)
    if not cutoffs:
        assert model.embedding.weight is model.head.weight
        assert torch.equal(vectors, model.head.weight)
        return
    assert torch.equal(vectors[:20], model.head.head.weight[:20])
    for i, (low, high) in enumerate(((20, 60), (60, 100))):
        table = model.head.tail[i][1].weight
        assert table.shape == (high - low, WIDTH // 4 ** (i + 1))
        torch.testing.assert_close(vectors[low:high], table @ model.embedding.projections[i].weight.t())


def test_vectors_and_likelihoods_start_at_a_sensible_size() -> None:
    torch.manual_seed(0)
    # A uniform guess: one of all words, or one of the head's entries (896 words, 3 bands), then one of a band's.
    guesses = {5_000: math.log(5_000), 12_000: math.log(896 + 3) + math.log(8_964 - 2_689)}
    for words, guess in guesses.items():
        model = TransformerLM(words, 1, 64, 64, 4)
        vectors = model._embed(torch.arange(4_096).view(1, -1) % model.words) * 8
        assert 0.9 < float(vectors.detach().std()) < 1.1
        x = torch.randint(model.words, (4, 64))
        assert float(model(x, x.roll(1)).mean().detach()) < guess + 2


def test_bad_input() -> None:
    model = tiny()
    for bad in (torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4), torch.zeros(2, 3, 4, dtype=torch.int64)):
        with pytest.raises(ConfigError, match=r"int64 \[N, T\]"):
            model(bad)
    for cutoffs in CUTOFFS:
        for word in (WORDS, -1):
            with pytest.raises(IndexError):
                tiny(cutoffs)(torch.tensor([[1, word]]))
    with pytest.raises(ConfigError, match="cannot be split"):
        TransformerLM(10, width=30, heads=4)
    with pytest.raises(ConfigError, match="too small for 4 bands"):
        TransformerLM(20_000, 1, width=32, heads=4)


def test_registry_knows_which_data_fit() -> None:
    image = SimpleNamespace(name="digits", classes=10, shape=(3, 8, 8))
    words = SimpleNamespace(name="wikitext2", classes=33_278, shape=(128,))
    assert "takes text" in (registry.compatible("transformer_base", image) or "")
    assert registry.compatible("transformer_base", words) is None
    assert "takes images" in (registry.compatible("resnet38", words) or "")


# -- methods ---------------------------------------------------------------------------------------------------------

# Recipes for linear layers: attention's products stay in floating point, as in their sources.
LINEAR_ONLY = {"fp8", "mx", "nvfp4", "quartet2", "luq", "jetfire", "switchback", "int8_rowwise"}
VARIANTS = [*((n, {}) for n in METHODS.names()), ("sbm", {"variant": "banner"}), ("slu", {"bits": 8, "grad_bits": 8})]


@pytest.mark.parametrize("cutoffs", CUTOFFS)
@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_every_method_trains_or_says_why_not(name: str, settings: dict[str, object], cutoffs: tuple[int, ...]) -> None:
    model: nn.Module = tiny(cutoffs, dropout=0.1)
    if name == "dorefa":
        assert "both signs" in (METHODS.get(name).unsuitable(model) or "")
        with pytest.raises(ConfigError, match=r"dorefa does not fit TransformerLM: activations are clipped"):
            prepare(name, model)
        return
    settings = {"refresh": 1, "observe": 1} if name == "dynasty" else settings
    assert METHODS.get(name).unsuitable(model) is None
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    method, model, ledger = prepare(name, model, **settings)
    losses = train(method, model, 2)
    assert all(math.isfinite(loss) for loss in losses)
    inside = [(n, p) for n, p in model.named_parameters() if ".attention.value.weight" in n]
    assert len(inside) == LAYERS
    if name != "slu":  # which may have skipped a layer for all samples
        assert all(not torch.equal(p, before[n.replace(".block.", ".")]) for n, p in inside)
    model.eval()
    x, y = text(2, 5)  # another number of sequences, and shorter ones
    with torch.no_grad():
        assert bool(torch.isfinite(model(x, y)).all())
    rows = [r for r in ledger.rows() if r.layer.endswith((".scores", ".mix"))]
    assert {r.product for r in rows} == {"FW", "EB", "GC"}
    if name in LINEAR_ONLY:
        assert all(r.bits1 == r.bits2 == 32 for r in rows)
        assert any(r.bits1 < 32 and r.bits2 < 32 for r in ledger.rows() if ".attention.value" in r.layer)
    elif name not in (*FLOAT_METHODS, "slu"):
        assert all(r.bits1 < 32 and r.bits2 < 32 for r in rows if not (settings.get("variant") and r.product == "GC"))
    ends = [r for r in ledger.rows() if r.layer.startswith(("head.tail", "embedding"))]
    assert bool(ends) == bool(cutoffs)
    assert all(r.bits1 == r.bits2 == 32 for r in ends)


@pytest.mark.parametrize("name", ["fp32", "static8", "sbm", "dfq", "slu", "wageubn", "dynasty"])
def test_a_repeated_text_is_learned(name: str) -> None:
    method, model, _ = prepare(name, tiny((20, 60)))
    losses = train(method, model, 25, lr=0.05)
    assert losses[0] > 4
    assert losses[-1] < 0.6 * losses[0], losses


def test_gate_reads_the_mean_over_the_words() -> None:
    method, model, _ = prepare("dfq", tiny())
    train(method, model, 1)
    gate, seen = model.precision_gate, []
    assert [f[0].in_features for f in gate.features] == [WIDTH] * LAYERS
    gate.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    x = torch.randn(3, 9, WIDTH)
    with torch.no_grad():
        model.layers[0](x)
    torch.testing.assert_close(seen[0], x.mean(1))


def test_slu_skips_whole_layers_for_no_cost() -> None:
    """With the gates shut, all that is left of a gated layer is its shortcut."""
    method, model, ledger = prepare("slu", tiny(), threshold="skipnet")
    with torch.no_grad():
        model.skip_gate.head.bias.fill_(-50.0)
        model.skip_gate.head.weight.zero_()
    x, _ = text()
    method.on_step_start(0)
    hidden = model(x)
    plain = tiny()
    shallow = nn.Sequential(plain.layers[0])
    plain.layers = shallow
    torch.testing.assert_close(hidden, plain(x))
    skipped = sum(r.macs for r in ledger.rows() if r.layer.startswith("layers.1.") and not r.bits1)
    assert skipped == 3 * 3 * macs_by_hand(9, 1, WIDTH, HIDDEN)


def test_quantized_training_keeps_less_for_backward() -> None:
    kept = {}
    for name in ("fp32", "sbm"):
        _, model, _ = prepare(name, TransformerLM(50, 1, WIDTH, HIDDEN, HEADS, 0.0))
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        seen: dict[int, int] = {}

        def pack(t: torch.Tensor, own: set[int] = own, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
            return t

        x = torch.randint(50, (16, 64), generator=torch.Generator().manual_seed(0))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(x)
        kept[name] = sum(seen.values())
        del out
    layers = [m for m in quant_layers(model) if not m.precision.is_float]
    assert len(layers) == 8
    assert kept["sbm"] < 0.8 * kept["fp32"]
