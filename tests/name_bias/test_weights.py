"Weight masks and localisation on many architectures, each with small random weights."
import copy, json, signal

import numpy as np, pytest, torch
from transformers import AutoModelForCausalLM

from fairness_repair.name_bias import weights
from fairness_repair.name_bias.localise import input_norms, localise, name_attention, padded, scores, token_rows, top_share
from fairness_repair.language.models import LM, load
from fairness_repair.name_bias.weights import Mask, empty_mask, load_mask, mask_table, masked, overlap, projections, random_mask, save_masked
from families import H, L, V, batch, build, by_structure, fingerprint, gqa, listed, logits, tokenizer

refused = ("mixtral", "deepseek_v3")
kinds = [*listed, *(kind for kind in by_structure if kind not in refused)]
fused = dict(gpt2="qkv o up down", gpt_neox="qkv o up down", phi3="qkv o gate_up down", bloom="qkv o up down", falcon="qkv o up down", gpt_bigcode="qkv o up down",
             codegen="qkv o up down", mpt="qkv o up down")
plain = dict.fromkeys(("gpt_neo", "gptj", "opt", "phi", "starcoder2"), "q k v o up down")
rows = [[5, 9, 12, 7, 30], [8, 40, 3], [22, 17, 50, 33]]
others = [[6, 60, 12, 7, 31], [44, 40, 3, 10]]


@pytest.fixture(scope="module", params=kinds)
def lm(request): return LM(request.param, build(request.param), tokenizer())

def few(lm, share=.05): return random_mask(Mask(empty_mask(lm).shapes, {name: np.arange(round(share*s.weight.numel())) for name, s in projections(lm).items()}))

def plain_norms(lm, rows):
    "Inputs kept row by row."
    kept, sites = {}, projections(lm)
    hooks = [s.module.register_forward_pre_hook(lambda m, args, name=name: kept.setdefault(name, []).append(args[0].detach().flatten(0, -2))) for name, s in sites.items()]
    with torch.no_grad():
        for _, inputs in padded(lm, rows, batch=1): lm.model(**inputs)
    for hook in hooks: hook.remove()
    return {name: torch.cat(x).double().square().sum(0).sqrt().numpy() for name, x in kept.items()}


def test_projections(lm):
    sites = projections(lm)
    parts = fused.get(lm.name) or plain.get(lm.name) or "q k v o gate up down"
    assert sorted(sites) == sorted(f"layers.{layer}.{part}" for layer in range(L) for part in parts.split())
    assert all(lm.model.get_submodule(s.name) is s.module for s in sites.values()) and len({id(s.module) for s in sites.values()}) == len(sites)
    assert [s.layer for s in sites.values()] == sorted(s.layer for s in sites.values())

def test_each_matrix_matters(lm):
    "Half of each matrix dropped: as many different functions as matrices."
    whole, outputs, none = logits(lm.model), [], empty_mask(lm)
    for name, site in projections(lm).items():
        with masked(lm, Mask(none.shapes, {name: np.arange(0, site.weight.numel(), 2)})): outputs.append(logits(lm.model))
    assert all((a - b).abs().max() > 1e-5 for i, a in enumerate(outputs) for b in [*outputs[:i], whole])

def test_mask_equals_zeroed_weights(lm):
    mask, by_hand = few(lm), copy.deepcopy(lm)
    for name, site in projections(by_hand).items(): site.weight.view(-1)[torch.from_numpy(mask.indices[name])] = 0
    with masked(lm, mask): assert fingerprint(lm.model) == fingerprint(by_hand.model) and torch.equal(logits(lm.model), logits(by_hand.model))

def test_model_is_whole_afterwards(lm):
    before, mask = fingerprint(lm.model), few(lm)
    with masked(lm, mask): assert fingerprint(lm.model) != before
    assert fingerprint(lm.model) == before
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), masked(lm, mask), masked(lm, few(lm, .2)): raise error
        assert fingerprint(lm.model) == before

def test_interrupted_while_weights_go_back(monkeypatch):
    "Ctrl-C in the middle of restoring comes after it."
    lm = LM("mine", build("gpt2"), tokenizer())
    before, mask, done = fingerprint(lm.model), few(lm), []
    def pairs(*args):
        for i, pair in enumerate(zip(*args)):
            if i == 1: signal.raise_signal(signal.SIGINT)
            done.append(i)
            yield pair
    usual = signal.signal(signal.SIGINT, signal.default_int_handler) # jobs in the background may ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt), masked(lm, mask): monkeypatch.setattr(weights, "zip", pairs, raising=False)
    finally: signal.signal(signal.SIGINT, usual)
    assert fingerprint(lm.model) == before and len(done) == len(mask.shapes)

def test_save_and_reload(lm, tmp_path):
    before, mask = fingerprint(lm.model), few(lm)
    folder = save_masked(lm, mask, tmp_path/"repaired")
    assert fingerprint(lm.model) == before and load_mask(folder) == mask
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=lm.model.config._attn_implementation).eval()
    with masked(lm, mask): assert torch.equal(logits(again), logits(lm.model))
    assert json.loads((folder/"mask.json").read_text())["pruned"] == len(mask)

def test_streaming_equals_plain(lm):
    "The same masks, to the last weight; padding moves norms in the last digits only."
    pair, plainly = [input_norms(lm, r, batch=1) for r in (rows, others)], [plain_norms(lm, r) for r in (rows, others)]
    mask = localise(lm, *pair, tau_min=.4, tau_maj=.35)
    assert 0 < len(mask) < .4*mask.total
    for name, site in projections(lm).items():
        tops = [set(np.argsort(-scores(site, norms[name]).numpy().ravel(), kind="stable")[:round(p*site.weight.numel())].tolist()) for norms, p in zip(plainly, (.4, .35))]
        assert mask.indices[name].tolist() == sorted(tops[0] - tops[1])
    for name, norm in input_norms(lm, rows, batch=3).items(): np.testing.assert_allclose(norm, pair[0][name], rtol=1e-3, atol=1e-4)

def test_layers_are_fed_by_the_layers_below(lm):
    "With half of layer 0's MLP dropped, layer 1 reads something else; the first matrix still reads the embeddings."
    none, first = empty_mask(lm), next(iter(projections(lm)))
    before = input_norms(lm, rows)
    with masked(lm, Mask(none.shapes, {"layers.0.down": np.arange(0, np.prod(none.shapes["layers.0.down"]), 2)})): after = input_norms(lm, rows)
    assert np.array_equal(before[first], after[first])
    for name in before:
        if name.startswith("layers.1"): assert np.abs(after[name] - before[name]).max() > 1e-3*before[name].max(), name

@pytest.mark.parametrize("kind", [*listed, "bloom", "phi3", "gemma2"])
def test_attention_to_a_name(kind):
    lm = LM(kind, build(kind), tokenizer())
    implementation, texts = lm.model.config._attn_implementation, ["w5 w9 w8 w7", "w8 w40"]
    found = name_attention(lm, texts, [(0, 11), (0, 6)], answers=["w7 w8", "w9"])
    assert found.shape == (2, L*H) and lm.model.config._attn_implementation == implementation
    assert (found > 0).all() and (found*[[4], [2]] < 1).all() # the share of attention on the prompt: answers see themselves too
    np.testing.assert_allclose(name_attention(lm, texts, [(0, 11), (0, 6)])*[[4], [2]], 1, rtol=1e-5) # nothing else to see
    for i in (0, 1): np.testing.assert_allclose(name_attention(lm, texts[i:i + 1], [(0, 6)], answers=["w7"]), name_attention(lm, texts, [(0, 6)]*2, answers=["w7", "w7"])[i:i + 1], rtol=1e-3, atol=1e-6)

def test_infinite_inputs_are_refused():
    lm = LM("mine", build("llama"), tokenizer())
    with torch.no_grad(): lm.model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="layers.0.down read infinite numbers in torch.float32"): input_norms(lm, rows)
    assert sum(len(m._forward_pre_hooks) for m in lm.model.modules()) == 0

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    lm = LM("mine", build("llama").to(dtype), tokenizer())
    before, mask = fingerprint(lm.model), localise(lm, input_norms(lm, rows), input_norms(lm, others))
    assert len(mask)
    with masked(lm, mask): assert logits(lm.model).dtype == dtype and fingerprint(lm.model) != before
    assert fingerprint(lm.model) == before

@pytest.mark.parametrize("kind, message", [
    ("mixtral", "layer 0 needs one matrix for each of q, k, v, o, up, down, but has 0 called up, 0 called down"),
    ("deepseek_v3", "but has 0 called q, 0 called k, 0 called v"),
])
def test_refused_with_what_is_missing(kind, message):
    with pytest.raises(ValueError, match=message): projections(LM(kind, build(kind), tokenizer()))

def test_shared_weights_are_refused():
    lm = LM("mine", build("llama"), tokenizer())
    lm.model.model.layers[1].mlp = lm.model.model.layers[0].mlp
    with pytest.raises(ValueError, match="are one weight in memory"): projections(lm)

def test_tied_embeddings_stay_tied(tmp_path):
    lm = LM("mine", build("llama", tie_word_embeddings=True), tokenizer())
    again = load(str(save_masked(lm, few(lm), tmp_path)), device="cpu")
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    with masked(lm, few(lm)): assert torch.equal(logits(again.model), logits(lm.model))

def test_mask_is_written_last(tmp_path, monkeypatch):
    lm = LM("mine", build("gpt2"), tokenizer())
    before = fingerprint(lm.model)
    save_masked(lm, few(lm), tmp_path)
    def broken(*args, **kwargs): raise OSError("disk full")
    monkeypatch.setattr(lm.model, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"): save_masked(lm, few(lm), tmp_path)
    assert not (tmp_path/"mask.json").exists() and fingerprint(lm.model) == before
    with pytest.raises(ValueError, match="no mask.json"): load_mask(tmp_path)

def test_sets_are_sets():
    "The algebra of masks is that of Python's sets."
    rng, shapes = np.random.default_rng(0), {"layers.0.q": (30, 40), "layers.0.o": (7, 5)}
    draw = lambda: {name: rng.integers(0, np.prod(shape), rng.integers(0, 50)) for name, shape in shapes.items()}
    for _ in range(20):
        a, b = draw(), draw()
        for name in ("__and__", "__or__", "__sub__"):
            found = getattr(Mask(shapes, a), name)(Mask(shapes, b))
            assert all(found.indices[m].tolist() == sorted(getattr(set(a[m].tolist()), name)(set(b[m].tolist()))) for m in shapes)
    assert np.isnan(overlap(Mask(shapes), Mask(shapes, a))) and mask_table(Mask(shapes)).share.sum() == 0

@pytest.mark.parametrize("indices, message", [
    ({"layers.0.q": [6]}, "layers.0.q has weights 0 to 5, not 6"), ({"layers.0.q": [-1]}, "not -1"),
    ({"layers.0.q": [.5]}, "integers, not float64"), ({"layers.0.q": [True, False]}, "integers, not bool"), ({"lm_head": [0]}, "no matrix 'lm_head'"),
])
def test_bad_masks(indices, message):
    with pytest.raises(ValueError, match=message): Mask({"layers.0.q": (2, 3)}, indices)

def test_top_share_is_exact_on_ties_and_sizes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, p = rng.integers(0, 5, rng.integers(1, 60)).astype(np.float32), rng.random()
        assert top_share(x, p).tolist() == sorted(np.argsort(-x, kind="stable")[:round(p*len(x))].tolist())
