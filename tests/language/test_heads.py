"Masks and pruning on many architectures, each with small random weights."
import copy, json

import numpy as np, pytest, torch
from transformers import AutoConfig, AutoModelForCausalLM

from fairness_repair.core import InputError
from fairness_repair.language.attention import attention_output_projections
from fairness_repair.language.heads import (heads_dropped, heads_to_mask, mask_to_heads, prune, save_pruned,
                                            values_by_layer)
from fairness_repair.language.models import LM, load, read_model

from families import H, L, V, batch, build, every, fingerprint, logits, small_config, tokenizer

masks = np.array([[0]*8, [0,1,0,0, 0,0,0,0], [1,0,0,1, 0,0,1,1]], bool)


@pytest.fixture(scope="module", params=every)
def model(request): return build(request.param)

def pruned(model, drop_mask):
    model = copy.deepcopy(model)
    prune(model, drop_mask)
    return model


def test_output_projections(model):
    projections = attention_output_projections(model)
    assert [p.layer for p in projections] == [0, 1] and {p.n_heads for p in projections} == {H}
    assert len({id(p.module) for p in projections}) == L
    assert all(model.get_submodule(p.name) is p.module for p in projections)

@pytest.mark.parametrize("drop_mask", masks[1:], ids=["one", "four"])
def test_mask_equals_zeroed_weights(model, drop_mask):
    with heads_dropped(model, drop_mask): masked = logits(model)
    assert torch.equal(masked, logits(pruned(model, drop_mask))) # difference exactly 0
    assert (masked - logits(model)).abs().max() > 1e-3

def test_each_head_matters_alone(model):
    "Eight heads, eight different functions: no slice is read twice or never."
    outputs = []
    for drop_mask in np.eye(L*H, dtype=bool):
        with heads_dropped(model, drop_mask): outputs.append(logits(model))
    whole = [logits(model)]
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(outputs) for b in outputs[:i] + whole)

def test_nothing_dropped_is_nothing_changed(model):
    whole = logits(model)
    for drop_mask in (masks[0], masks[:1].repeat(3, 0)):
        with heads_dropped(model, drop_mask): assert torch.equal(logits(model), whole)

def test_rows_equal_separate_runs(model):
    with heads_dropped(model, masks): together = logits(model)
    for row, drop_mask in enumerate(masks):
        with heads_dropped(model, drop_mask):
            alone, same_batch = logits(model, batch[row:row + 1])[0], logits(model)[row]
        for separate in (same_batch, alone): # 0 for all but mixtral, which sorts tokens by expert (2e-7)
            assert (together[row] - separate).abs().max() <= 1e-6*max(1, separate.abs().max())

def test_model_is_whole_afterwards(model):
    before, whole = fingerprint(model), logits(model)
    with heads_dropped(model, masks): logits(model)
    assert fingerprint(model) == before and torch.equal(logits(model), whole)
    with pytest.raises(KeyboardInterrupt), heads_dropped(model, masks[2]):
        logits(model)
        raise KeyboardInterrupt
    message = "3 drop masks for a batch of 2 rows"
    with pytest.raises(ValueError, match=message), heads_dropped(model, masks): logits(model, batch[:2])
    assert fingerprint(model) == before and torch.equal(logits(model), whole)

def test_generation_with_cache(model):
    "A padded batch, continued greedily under masks, against pruned copies."
    x, mask = batch.clone(), torch.ones_like(batch)
    x[1, :3] = mask[1, :3] = 0
    def write(model):
        return model.generate(x, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True)
    with heads_dropped(model, masks[2]): assert torch.equal(write(model), write(pruned(model, masks[2])))
    with heads_dropped(model, masks): together = write(model)
    for row, drop_mask in enumerate(masks):
        expected = write(pruned(model, drop_mask))[row]
        n = min(len(expected), together.shape[1]) # rows that end early are padded to the longest
        assert torch.equal(together[row, :n], expected[:n])
        assert not together[row, n:].any() and not expected[n:].any()

def test_save_and_reload(model, tmp_path):
    before = fingerprint(model)
    folder = save_pruned(LM("mine", model, tokenizer()), masks[2], tmp_path/"repaired")
    assert fingerprint(model) == before
    with heads_dropped(model, masks[2]): masked = logits(model)
    same = dict(dtype=torch.float32, attn_implementation=model.config._attn_implementation)
    plain = AutoModelForCausalLM.from_pretrained(folder, **same)
    assert torch.equal(logits(plain.eval()), masked)
    record = json.loads((folder/"state.json").read_text())
    assert record == dict(model="mine", n_layers=L, n_heads=H, dropped=[[0, 0], [0, 3], [1, 2], [1, 3]])
    assert torch.equal(logits(read_model("mine", folder)), masked)

def test_repaired_folder_is_a_model_to_load(tmp_path):
    model = build("gpt2")
    again = load(str(save_pruned(LM("mine", model, tokenizer()), masks[2], tmp_path)), device="cpu")
    with heads_dropped(model, masks[2]): assert torch.equal(logits(again.model), logits(model))
    assert again.tokenizer("w5 w6").input_ids == [5, 6] and again.n_heads_total == 8

def test_state_json_is_written_last(tmp_path, monkeypatch):
    "A killed or failed save leaves no state.json beside an incomplete checkpoint, and the model unchanged."
    lm = LM("mine", build("gpt2"), tokenizer())
    before = fingerprint(lm.model)
    save_pruned(lm, masks[1], tmp_path)
    def broken(*args, **kwargs): raise OSError("disk full")
    monkeypatch.setattr(lm.model, "save_pretrained", broken)
    with pytest.raises(OSError, match="disk full"): save_pruned(lm, masks[2], tmp_path)
    assert not (tmp_path/"state.json").exists() and fingerprint(lm.model) == before


def test_dropped_twice_is_the_union():
    model = build("llama")
    with heads_dropped(model, masks[1]), heads_dropped(model, masks[2]): nested = logits(model)
    with heads_dropped(model, masks[1] | masks[2]): assert torch.equal(logits(model), nested)
    with heads_dropped(model, masks[1]), heads_dropped(model, masks):
        assert (logits(model) != logits(build("llama"))).any()

def test_infinite_head_is_gone_when_dropped():
    "Values of head 0 are infinite; without it the logits are those of a model where the head is harmless."
    model = build("gpt2")
    attention, drop_mask = model.transformer.h[0].attn, heads_to_mask([(0, 0)], L, H)
    with heads_dropped(model, drop_mask): expected = logits(model)
    with torch.no_grad(): attention.c_attn.bias[2*32:2*32 + 8] = torch.inf
    assert not logits(model).isfinite().all()
    with heads_dropped(model, drop_mask): assert torch.equal(logits(model), expected)

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = build("llama").to(dtype)
    with heads_dropped(model, masks[2]): masked = logits(model)
    assert masked.dtype == dtype and torch.equal(masked, logits(pruned(model, masks[2])))

@pytest.mark.parametrize("drop_mask, message", [
    ([0]*7, r"shape \(7,\).*needs \(8,\), \(2, 4\) or \(rows, 8\)"),
    (np.zeros((4, 2)), r"shape \(4, 2\)"),
    (np.zeros((3, 2, 4)), r"shape \(3, 2, 4\)"),
    (np.zeros((0, 8)), r"shape \(0, 8\)"),
    (np.zeros(()), r"shape \(\)"),
    ([2] + [0]*7, "not 2"), ([-1] + [0]*7, "not -1"), ([.5]*8, "not 0.5"), ([np.nan] + [0]*7, "not nan"),
    (["True"]*8, "not 'True'"), ([None]*8, "not None"),
])
def test_bad_masks(drop_mask, message):
    model = build("gpt2")
    for use in (prune, lambda model, drop_mask: heads_dropped(model, drop_mask).__enter__()):
        before = fingerprint(model)
        with pytest.raises(ValueError, match=message): use(model, drop_mask)
        assert fingerprint(model) == before

forms = [masks[2], masks[2].astype(int), masks[2].astype(float), masks[2].tolist(), masks[2].reshape(L, H),
         torch.tensor(masks[2])]

@pytest.mark.parametrize("drop_mask", forms)
def test_good_masks(drop_mask):
    model = build("gpt2")
    with heads_dropped(model, masks[2]): expected = logits(model)
    with heads_dropped(model, drop_mask): assert torch.equal(logits(model), expected)

no_heads = dict(num_hidden_layers=L, hidden_size=32, vocab_size=V)

@pytest.mark.parametrize("kind, more, message", [
    ("mamba", no_heads, "MambaForCausalLM has no attention heads"),
    ("rwkv", no_heads, "RwkvForCausalLM has no attention heads"),
    ("bart", dict(d_model=32, encoder_layers=L, decoder_layers=L, decoder_attention_heads=H,
                  decoder_ffn_dim=64, vocab_size=V),
     r"layer 0 has 2 attention modules \(self_attn, encoder_attn\)"),
])
def test_refused_with_what_is_missing(kind, more, message):
    model = build(kind, **more)
    with pytest.raises(InputError, match=message): attention_output_projections(model)

def changed(change, kind="llama"):
    model = build(kind)
    for layer in model.model.layers: change(layer.self_attn)
    return model

def share(model): model.model.layers[1].self_attn.o_proj.weight = model.model.layers[0].self_attn.o_proj.weight

def test_structures_that_do_not_fit():
    def rename(attention): attention.last = attention._modules.pop("o_proj")
    with pytest.raises(InputError, match="layer 0: LlamaAttention has 0 output projections"):
        attention_output_projections(changed(rename))
    def widen(attention): attention.head_dim = 16
    with pytest.raises(InputError, match="LlamaAttention has 4 heads of width 16, but its output projection reads 32"):
        attention_output_projections(changed(widen))
    model = build("llama")
    share(model)
    with pytest.raises(InputError, match="layers 0 and 1 share one output projection"): attention_output_projections(model)

def test_linear_attention_as_wide_as_attention_has_no_heads():
    "Qwen3.5 in its published proportions: `linear_attn.out_proj` has the name and the width, but no softmax."
    model = build(small_config("qwen3_5_text"))
    linear, attention = model.model.layers
    linear.linear_attn.out_proj = torch.nn.Linear(attention.self_attn.o_proj.in_features, 32)
    projection, = attention_output_projections(model)
    assert (projection.layer, projection.n_heads, projection.head_dim) == (1, 4, 16)

def test_a_class_that_only_looks_like_attention():
    "All names and widths of attention, and a forward pass without a softmax."
    class RetentionAttention(torch.nn.Module):
        def __init__(self, old):
            super().__init__()
            self.__dict__ |= old.__dict__
        def forward(self, hidden_states, **kwargs): return self.o_proj(self.v_proj(hidden_states)), None
    model = build("llama")
    model.model.layers[0].self_attn = RetentionAttention(model.model.layers[0].self_attn)
    assert [p.layer for p in attention_output_projections(model)] == [1]


@pytest.fixture(params=["qwen3_5_text", "nemotron_h", "lfm3", "jamba"])
def hybrid(request): return LM("mine", build(small_config(request.param)), tokenizer())

def test_hybrid_is_a_model_like_any_other(hybrid, tmp_path):
    "True layer numbers in the checkpoint's list, and masks per row."
    layers, n = [p.layer for p in hybrid.projections], hybrid.n_heads_total
    assert n == H*len(layers) and hybrid.n_heads == tuple(H*(i in layers) for i in range(hybrid.n_layers))
    assert f"{n} heads in {len(layers)} of them ({', '.join(map(str, layers))})" in repr(hybrid)
    state = heads_to_mask([(layers[0], 1), (layers[-1], 3)], hybrid.n_layers, hybrid.n_heads)
    assert np.flatnonzero(state).tolist() == [1, n - 1]
    with heads_dropped(hybrid.model, state): masked = logits(hybrid.model)
    both = np.stack([state, ~state, np.zeros(n, bool)])
    with heads_dropped(hybrid.model, both): rows = logits(hybrid.model)
    assert torch.allclose(rows[0], masked[0], atol=1e-5) and torch.allclose(rows[2], logits(hybrid.model)[2], atol=1e-5)
    folder = save_pruned(hybrid, state, tmp_path)
    record = json.loads((folder/"state.json").read_text())
    assert record["dropped"] == [[layers[0], 1], [layers[-1], 3]] and record["n_heads"] == list(hybrid.n_heads)
    again = load(str(folder), device="cpu")
    assert torch.allclose(logits(again.model), masked, atol=1e-5) and again.n_heads == hybrid.n_heads
    with pytest.raises(InputError, match="there is no head"):
        heads_to_mask([(next(i for i in range(hybrid.n_layers) if i not in layers), 0)], hybrid.n_layers, hybrid.n_heads)
    with pytest.raises(InputError, match="drop mask of shape"): prune(hybrid.model, np.zeros(hybrid.n_layers*H, bool))

def test_layers_with_other_numbers_of_heads():
    "Each layer has its own number and width, as in Inkling."
    model = build(AutoConfig.for_model(**small_config("inkling_text").to_dict() | dict(
        swa_num_attention_heads=6, swa_num_key_value_heads=2, swa_head_dim=8)))
    lm = LM("mine", model, tokenizer())
    assert [(p.n_heads, p.head_dim, p.start) for p in lm.projections] == [(6, 8, 0), (4, 16, 6)] and lm.n_heads == (6, 4)
    assert "2 layers with 10 heads" in repr(lm)
    state = heads_to_mask([(0, 5), (1, 0)], 2, lm.n_heads)
    with heads_dropped(model, state): assert torch.equal(logits(model), logits(pruned(model, state)))
    assert mask_to_heads(state, 2, lm.n_heads) == [[0, 5], [1, 0]]
    assert values_by_layer(state, 2, lm.n_heads).shape == (2, 6)
