"Weight masks and localisation on many architectures, each with small random weights."
import copy, json, signal

import numpy as np, pytest, torch
from transformers import AutoModelForCausalLM

from fairness_repair.name_bias import weights
from fairness_repair.name_bias.localise import (input_norms, localise_weights, name_attention, padded_batches,
                                                token_rows, top_share_mask, wanda_scores)
from fairness_repair.language.models import LM, load
from fairness_repair.name_bias.weights import (WeightMask, empty_mask, load_mask, mask_table, overlap,
                                               projection_matrices, random_mask, save_pruned,
                                               weights_dropped)
from families import H, L, V, batch, build, by_structure, fingerprint, gqa, listed, logits, tokenizer

refused = ("mixtral", "deepseek_v3")
kinds = [*listed, *(kind for kind in by_structure if kind not in refused)]
fused = dict.fromkeys("gpt2 gpt_neox bloom falcon gpt_bigcode codegen mpt".split(), "qkv o up down")
fused["phi3"] = "qkv o gate_up down"
plain = dict.fromkeys(("gpt_neo", "gptj", "opt", "phi", "starcoder2"), "q k v o up down")
rows = [[5, 9, 12, 7, 30], [8, 40, 3], [22, 17, 50, 33]]
others = [[6, 60, 12, 7, 31], [44, 40, 3, 10]]


@pytest.fixture(scope="module", params=kinds)
def lm(request): return LM(request.param, build(request.param), tokenizer())

def few(lm, share=.05):
    "As many randomly chosen weights of each matrix."
    sizes = {name: round(share*m.weight.numel()) for name, m in projection_matrices(lm).items()}
    return random_mask(WeightMask(empty_mask(lm).shapes, {name: np.arange(n) for name, n in sizes.items()}))

def plain_norms(lm, rows):
    "Inputs kept row by row."
    kept = {}
    def keep(name):
        return lambda module, args: kept.setdefault(name, []).append(args[0].detach().flatten(0, -2))
    hooks = [m.module.register_forward_pre_hook(keep(name)) for name, m in projection_matrices(lm).items()]
    with torch.no_grad():
        for _, inputs in padded_batches(lm, rows, batch=1): lm.model(**inputs)
    for hook in hooks: hook.remove()
    return {name: torch.cat(x).double().square().sum(0).sqrt().numpy() for name, x in kept.items()}


def test_projections(lm):
    matrices = projection_matrices(lm)
    parts = fused.get(lm.name) or plain.get(lm.name) or "q k v o gate up down"
    expected = sorted(f"layers.{layer}.{part}" for layer in range(L) for part in parts.split())
    assert sorted(matrices) == expected
    assert all(lm.model.get_submodule(m.name) is m.module for m in matrices.values())
    assert len({id(m.module) for m in matrices.values()}) == len(matrices)
    assert [m.layer for m in matrices.values()] == sorted(m.layer for m in matrices.values())

def test_each_matrix_matters(lm):
    "Half of each matrix dropped: as many different functions as matrices."
    whole, outputs, none = logits(lm.model), [], empty_mask(lm)
    for name, matrix in projection_matrices(lm).items():
        half = WeightMask(none.shapes, {name: np.arange(0, matrix.weight.numel(), 2)})
        with weights_dropped(lm, half): outputs.append(logits(lm.model))
    assert all((a - b).abs().max() > 1e-5 for i, a in enumerate(outputs) for b in [*outputs[:i], whole])

def test_mask_equals_zeroed_weights(lm):
    mask, by_hand = few(lm), copy.deepcopy(lm)
    for name, matrix in projection_matrices(by_hand).items():
        matrix.weight.view(-1)[torch.from_numpy(mask.indices[name])] = 0
    with weights_dropped(lm, mask):
        assert fingerprint(lm.model) == fingerprint(by_hand.model)
        assert torch.equal(logits(lm.model), logits(by_hand.model))

def test_model_is_whole_afterwards(lm):
    before, mask = fingerprint(lm.model), few(lm)
    with weights_dropped(lm, mask): assert fingerprint(lm.model) != before
    assert fingerprint(lm.model) == before
    for error in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(error), weights_dropped(lm, mask), weights_dropped(lm, few(lm, .2)):
            raise error
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
    usual = signal.signal(signal.SIGINT, signal.default_int_handler) # background jobs may ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt), weights_dropped(lm, mask):
            monkeypatch.setattr(weights, "zip", pairs, raising=False)
    finally: signal.signal(signal.SIGINT, usual)
    assert fingerprint(lm.model) == before and len(done) == len(mask.shapes)

def test_save_and_reload(lm, tmp_path):
    before, mask = fingerprint(lm.model), few(lm)
    folder = save_pruned(lm, mask, tmp_path/"repaired")
    assert fingerprint(lm.model) == before and load_mask(folder) == mask
    options = dict(dtype=torch.float32, attn_implementation=lm.model.config._attn_implementation)
    again = AutoModelForCausalLM.from_pretrained(folder, **options)
    with weights_dropped(lm, mask): assert torch.equal(logits(again.eval()), logits(lm.model))
    assert json.loads((folder/"mask.json").read_text())["pruned"] == len(mask)

def test_streaming_equals_plain(lm):
    "The same masks, to the last weight; padding moves norms in the last digits only."
    pair = [input_norms(lm, r, batch=1) for r in (rows, others)]
    plain_pair = [plain_norms(lm, r) for r in (rows, others)]
    mask = localise_weights(lm, *pair, minority_top_share=.4, majority_top_share=.35)
    assert 0 < len(mask) < .4*mask.total
    for name, matrix in projection_matrices(lm).items():
        tops = []
        for norms, share in zip(plain_pair, (.4, .35)):
            order = np.argsort(-wanda_scores(matrix, norms[name]).numpy().ravel(), kind="stable")
            tops.append(set(order[:round(share*matrix.weight.numel())].tolist()))
        assert mask.indices[name].tolist() == sorted(tops[0] - tops[1])
    for name, norm in input_norms(lm, rows, batch=3).items():
        np.testing.assert_allclose(norm, pair[0][name], rtol=1e-3, atol=1e-4)

def test_layers_are_fed_by_the_layers_below(lm):
    "With half of layer 0's MLP dropped, the input of layer 1 changes and that of the first matrix does not."
    none, first = empty_mask(lm), next(iter(projection_matrices(lm)))
    before = input_norms(lm, rows)
    half = WeightMask(none.shapes, {"layers.0.down": np.arange(0, np.prod(none.shapes["layers.0.down"]), 2)})
    with weights_dropped(lm, half): after = input_norms(lm, rows)
    assert np.array_equal(before[first], after[first])
    for name in before:
        if name.startswith("layers.1"):
            assert np.abs(after[name] - before[name]).max() > 1e-3*before[name].max(), name

@pytest.mark.parametrize("kind", [*listed, "bloom", "phi3", "gemma2"])
def test_attention_to_a_name(kind):
    lm = LM(kind, build(kind), tokenizer())
    implementation, texts = lm.model.config._attn_implementation, ["w5 w9 w8 w7", "w8 w40"]
    found = name_attention(lm, texts, [(0, 11), (0, 6)], answers=["w7 w8", "w9"])
    assert found.shape == (2, L*H) and lm.model.config._attn_implementation == implementation
    assert (found > 0).all() and (found*[[4], [2]] < 1).all() # answers attend to themselves as well
    all_tokens = name_attention(lm, texts, [(0, 11), (0, 6)])*[[4], [2]]
    np.testing.assert_allclose(all_tokens, 1, rtol=1e-5) # there are no other tokens
    both = name_attention(lm, texts, [(0, 6)]*2, answers=["w7", "w7"])
    for i in (0, 1):
        alone = name_attention(lm, texts[i:i + 1], [(0, 6)], answers=["w7"])
        np.testing.assert_allclose(alone, both[i:i + 1], rtol=1e-3, atol=1e-6)

def test_infinite_inputs_are_refused():
    lm = LM("mine", build("llama"), tokenizer())
    with torch.no_grad(): lm.model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.inf
    message = "layers.0.down read infinite numbers in torch.float32"
    with pytest.raises(ValueError, match=message): input_norms(lm, rows)
    assert sum(len(m._forward_pre_hooks) for m in lm.model.modules()) == 0

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    lm = LM("mine", build("llama").to(dtype), tokenizer())
    before, mask = fingerprint(lm.model), localise_weights(lm, input_norms(lm, rows), input_norms(lm, others))
    assert len(mask)
    with weights_dropped(lm, mask):
        assert logits(lm.model).dtype == dtype and fingerprint(lm.model) != before
    assert fingerprint(lm.model) == before

@pytest.mark.parametrize("kind, message", [
    ("mixtral", "each of q, k, v, o, up, down, but has 0 called up, 0 called down"),
    ("deepseek_v3", "but has 0 called q, 0 called k, 0 called v"),
])
def test_refused_with_what_is_missing(kind, message):
    with pytest.raises(ValueError, match=message): projection_matrices(LM(kind, build(kind), tokenizer()))

def test_shared_weights_are_refused():
    lm = LM("mine", build("llama"), tokenizer())
    lm.model.model.layers[1].mlp = lm.model.model.layers[0].mlp
    with pytest.raises(ValueError, match="are one weight in memory"): projection_matrices(lm)

def test_tied_embeddings_stay_tied(tmp_path):
    lm = LM("mine", build("llama", tie_word_embeddings=True), tokenizer())
    again = load(str(save_pruned(lm, few(lm), tmp_path)), device="cpu")
    assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    with weights_dropped(lm, few(lm)): assert torch.equal(logits(again.model), logits(lm.model))

def test_mask_is_written_last(tmp_path, monkeypatch):
    lm = LM("mine", build("gpt2"), tokenizer())
    before = fingerprint(lm.model)
    save_pruned(lm, few(lm), tmp_path)
    def broken(*args, **kwargs): raise OSError("disk full")
    monkeypatch.setattr(lm.model, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"): save_pruned(lm, few(lm), tmp_path)
    assert not (tmp_path/"mask.json").exists() and fingerprint(lm.model) == before
    with pytest.raises(ValueError, match="no mask.json"): load_mask(tmp_path)

def test_sets_are_sets():
    "The algebra of masks is that of Python's sets."
    rng, shapes = np.random.default_rng(0), {"layers.0.q": (30, 40), "layers.0.o": (7, 5)}
    draw = lambda: {name: rng.integers(0, np.prod(shape), rng.integers(0, 50))
                    for name, shape in shapes.items()}
    for _ in range(20):
        a, b = draw(), draw()
        for name in ("__and__", "__or__", "__sub__"):
            found = getattr(WeightMask(shapes, a), name)(WeightMask(shapes, b))
            for matrix in shapes:
                plain = getattr(set(a[matrix].tolist()), name)(set(b[matrix].tolist()))
                assert found.indices[matrix].tolist() == sorted(plain)
    assert np.isnan(overlap(WeightMask(shapes), WeightMask(shapes, a)))
    assert mask_table(WeightMask(shapes)).share.sum() == 0

@pytest.mark.parametrize("indices, message", [
    ({"layers.0.q": [6]}, "layers.0.q has weights 0 to 5, not 6"), ({"layers.0.q": [-1]}, "not -1"),
    ({"layers.0.q": [.5]}, "integers, not float64"), ({"layers.0.q": [True, False]}, "integers, not bool"),
    ({"lm_head": [0]}, "no matrix 'lm_head'"),
])
def test_bad_masks(indices, message):
    with pytest.raises(ValueError, match=message): WeightMask({"layers.0.q": (2, 3)}, indices)

def test_top_share_is_exact_on_ties_and_sizes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, p = rng.integers(0, 5, rng.integers(1, 60)).astype(np.float32), rng.random()
        expected = sorted(np.argsort(-x, kind="stable")[:round(p*len(x))].tolist())
        assert top_share_mask(torch.from_numpy(x), p).nonzero()[:, 0].tolist() == expected
