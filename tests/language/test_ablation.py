"Ablation by layer equals one head after the other, on many architectures."
import numpy as np, pandas as pd, pytest, torch
from families import build, listed, small_config, tokenizer, H, L, V

from fairness_repair.language import ablation
from fairness_repair.language.ablation import ablate_heads, ablate_layer, decoder_layers, record_layers
from fairness_repair.language.evaluator import Evaluator
from fairness_repair.language.heads import heads_dropped
from fairness_repair.language.model_metrics import NextTokenToxicity, SampledToxicity, TextPerplexity
from fairness_repair.language.models import LM
from fairness_repair.store import Store


@pytest.fixture(scope="module", params=list(listed) + ["gemma2", "qwen3", "bloom", "mixtral"])
def small(request): return LM("mine", build(request.param), tokenizer())


class Odd:
    "A scorer: the share of odd words."
    name, broken = "odd", False
    def __call__(self, texts):
        if self.broken: raise TypeError("broken")
        return np.array([np.mean([int(w[1:]) % 2 for w in t.split()] or [0]) for t in texts])


def make_metrics(lm):
    rng = np.random.default_rng(0)
    words = lambda n: " ".join(f"w{i}" for i in rng.integers(4, V, n))
    rows = [(words(rng.integers(2, 9)), group) for group in "ab" for _ in range(5)]
    prompts = pd.DataFrame(rows, columns=["text", "group"])
    documents = [words(n) for n in (30, 12, 2)]
    return dict(text=TextPerplexity(lm, documents, window=16),
                exact=NextTokenToxicity(lm, prompts, ["w5", "w6", "w40"]),
                sampled=SampledToxicity(prompts, Odd(), new_tokens=5))


def is_whole(lm): return not any("forward" in vars(layer) for layer in decoder_layers(lm))


@pytest.mark.parametrize("kind", ["text", "exact", "sampled"])
def test_ablation_by_layer_equals_one_by_one(small, kind):
    "Every head, with pieces so small that there are several of them."
    metric, single = make_metrics(small)[kind], np.eye(small.n_heads_total, dtype=bool)
    before = small.weights_hash()
    for sizes in (dict(), dict(rows=3, tokens=20)):
        recorded = record_layers(small, metric, **sizes)
        shared = np.concatenate([ablate_layer(small, recorded, layer, range(H)) for layer in range(L)])
        for state, found in zip(single, shared):
            with heads_dropped(small.model, state): plain = metric(small)
            np.testing.assert_allclose(found, plain, rtol=2e-5, atol=1e-6)
    assert small.weights_hash() == before and is_whole(small)


def test_layers_are_whole_after_an_error():
    lm = LM("mine", build("llama"), tokenizer())
    metric = make_metrics(lm)["sampled"]
    recorded, whole = record_layers(lm, metric), metric(lm)
    metric.scorer.broken = True
    with pytest.raises(TypeError): ablate_layer(lm, recorded, 1, [0])
    metric.scorer.broken = False
    assert (metric(lm) == whole).all() and is_whole(lm)


def test_ablation_resumes_layer_by_layer(monkeypatch):
    "A run that stops in its second layer has stored its first."
    lm = LM("mine", build("gpt2"), tokenizer())
    metrics, seen, usual = make_metrics(lm), [], ablation.ablate_layer
    evaluator = Evaluator(lm, metrics["sampled"], metrics["text"])
    def stop(lm, recorded, layer, heads):
        if layer == 1: raise KeyboardInterrupt
        return usual(lm, recorded, layer, heads)
    def watch(lm, recorded, layer, heads):
        seen.append((int(layer), [int(h) for h in heads]))
        return usual(lm, recorded, layer, heads)
    monkeypatch.setattr(ablation, "ablate_layer", stop)
    with pytest.raises(KeyboardInterrupt): ablate_heads({("a", 0): evaluator})
    monkeypatch.setattr(ablation, "ablate_layer", watch)
    ablate_heads({("a", 0): evaluator})
    every = [0, 1, 2, 3]
    assert seen == [(1, every), (0, every), (1, every)], "text: its second layer; prompts: both"


def test_half_precision_is_kept_apart():
    lm = LM("mine", build("llama").to(torch.bfloat16), tokenizer())
    metrics, state = make_metrics(lm), np.eye(8, dtype=bool)[:1]
    evaluator = Evaluator(lm, metrics["sampled"], metrics["text"])
    ablate_heads({("a", 0): evaluator}, heads=[0])
    evaluator(state)
    scans = [record.get("scan", "") for record in evaluator.store.descriptions()]
    assert sorted(scans) == ["", "", "by layer", "by layer"]
    measured = evaluator.counts.measured
    ablate_heads({("a", 0): evaluator}, heads=[0])
    assert evaluator.counts.measured == measured, "it reads the numbers of both ways"


@pytest.mark.parametrize("family", ["jamba", "gemma4_text"])
def test_models_without_the_shortcut(family):
    "Layers that are not attention, and layers that read the keys of lower ones: one head after the other."
    lm = LM("mine", build(small_config(family)), tokenizer())
    metrics, single = make_metrics(lm), np.eye(lm.n_heads_total, dtype=bool)
    table = ablate_heads({("a", 0): Evaluator(lm, metrics["exact"], metrics["text"])})
    plain = Evaluator(lm, metrics["exact"], metrics["text"])(single)
    assert not ablation.can_skip_layers(lm) and table["head"].tolist() == list(range(-1, len(single)))
    np.testing.assert_allclose(table[["bias", "perplexity"]][1:], plain[["bias", "perplexity"]], rtol=1e-6)
