"Masks and pruning on many architectures, each with small random weights."
import copy, json

import numpy as np, pytest, torch
from transformers import AutoModelForCausalLM

from fairness_repair.language.heads import (attention_output_projections, heads_to_mask, prune, save_pruned,
                                            heads_dropped)
from fairness_repair.language.models import LM, load, read_model

from families import H, L, V, batch, build, every, gqa, fingerprint, logits, tokenizer

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
    ("jamba", gqa | dict(attn_layer_period=2, attn_layer_offset=1),
     "layer 0 has 0 attention output projections"),
    ("bart", dict(d_model=32, encoder_layers=L, decoder_layers=L, decoder_attention_heads=H,
                  decoder_ffn_dim=64, vocab_size=V),
     r"layer 0 has 2 attention output projections \(self_attn.out_proj, encoder_attn.out_proj\)"),
])
def test_refused_with_what_is_missing(kind, more, message):
    model = build(kind, **more)
    with pytest.raises(ValueError, match=message): attention_output_projections(model)

def test_other_names_are_refused_with_what_was_looked_for():
    model = build("llama")
    for layer in model.model.layers: layer.self_attn.last = layer.self_attn._modules.pop("o_proj")
    message = "0 lists of 2 layers have an attention output projection.*o_proj.*32 inputs"
    with pytest.raises(ValueError, match=message): attention_output_projections(model)
