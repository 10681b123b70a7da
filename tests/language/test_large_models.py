"Models that do not fit: rounded weights, layers on the disk, and repaired checkpoints that are copied file by file."
import json, os, re
from pathlib import Path

import numpy as np, pytest, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig)

from fairness_repair.app import repair
from fairness_repair.app.job import check_job
from fairness_repair.core import InputError
from fairness_repair.language import large_models, shards
from fairness_repair.language.batched import measure_batched
from fairness_repair.language.generation import generate
from fairness_repair.language.head_gradients import weights_frozen
from fairness_repair.language.heads import heads_dropped, prune, save_pruned
from fairness_repair.language.large_models import check_memory, weight_bytes
from fairness_repair.language.models import LM, load
from fairness_repair.language.shards import copy_pruned, find_checkpoint
from fairness_repair.pruning.experiment import build_evaluator, make_config
from fairness_repair.states import SearchSpace, random_states

vocabulary = len(load("tiny").tokenizer)
common = dict(vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=0)
sizes = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=128) | common
configs = {
    "gpt2": GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=128, **common),
    "llama": LlamaConfig(num_key_value_heads=2, intermediate_size=48, **sizes),
    "opt": OPTConfig(ffn_dim=48, word_embed_proj_dim=32, **sizes),
    "neox": GPTNeoXConfig(intermediate_size=48, **sizes)}
state, *states = random_states(SearchSpace(16, 1, 8), 4, rng=1)
needs_bitsandbytes = pytest.mark.skipif(not large_models.importlib.util.find_spec("bitsandbytes"), reason="pip install bitsandbytes")


def saved(folder, family, dtype=torch.float32):
    "A model with random weights in several files, with the tokenizer of tiny."
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[family]).to(dtype)
    model.save_pretrained(folder, max_shard_size="15KB")
    load("tiny").tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def tensors(folder):
    found = {}
    for file in folder.glob("*.safetensors"): found |= load_file(file)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", configs)
def test_a_copy_is_what_a_model_in_memory_saves(family, dtype, tmp_path):
    home = saved(tmp_path/"home", family, dtype)
    before = {file.name: file.read_bytes() for file in home.iterdir()}
    checkpoint = find_checkpoint(str(home))
    copied = copy_pruned(checkpoint, state, tmp_path/"copied")
    assert {file.name: file.read_bytes() for file in home.iterdir()} == before, "the original has changed"
    lm = load(str(home), dtype=str(dtype).removeprefix("torch."), device="cpu")
    kept, expected = tensors(copied), tensors(save_pruned(lm, state, tmp_path/"memory"))
    assert all(torch.equal(kept[name], value) for name, value in expected.items())
    assert json.loads((copied/"state.json").read_text()) == json.loads((tmp_path/"memory"/"state.json").read_text())
    # other bytes are the same, headers and names included
    columns = {name for name, value in tensors(home).items() if not torch.equal(value, kept[name])}
    assert columns == {p.name + ".weight" for p in lm.projections if state[p.positions].any()}
    for name, content in before.items():
        if not name.endswith(".safetensors"): assert (copied/name).read_bytes() == content
        else: assert len((copied/name).read_bytes()) == len(content)
    plain = AutoModelForCausalLM.from_pretrained(copied, dtype=torch.float32).eval()
    whole, ids = load(str(home), device="cpu").model, torch.arange(12).reshape(2, 6)
    plain.set_attn_implementation(whole.config._attn_implementation)
    with torch.no_grad(), heads_dropped(whole, state): masked = whole(ids).logits
    with torch.no_grad(): assert torch.equal(plain(ids).logits, masked)


def test_names_without_the_prefix_of_the_model(tmp_path):
    "GPT-2 on the hub has no 'transformer.' in front of its names."
    home = saved(tmp_path/"home", "gpt2")
    short = {name.removeprefix("transformer."): value for name, value in tensors(home).items()}
    for file in home.glob("*.safetensors*"): file.unlink()
    save_file(short, home/"model.safetensors", metadata={"format": "pt"})
    copied = copy_pruned(find_checkpoint(str(home)), state, tmp_path/"copied")
    lm = load(str(home), device="cpu")
    prune(lm.model, state)
    assert load(str(copied), device="cpu").weights_hash() == lm.weights_hash()
    with safe_open(copied/"model.safetensors", "pt") as file: assert set(file.keys()) == set(short)


def test_checkpoints_that_cannot_be_copied(tmp_path):
    home = saved(tmp_path/"home", "llama")
    name = "model.layers.0.self_attn.o_proj.weight"
    file = home/json.loads((home/shards.INDEX).read_text())["weight_map"][name]
    good = load_file(file)
    save_file(good | {name: good[name].to(torch.int8)}, file)
    with pytest.raises(InputError, match=f"{re.escape(name)} .* holds it as I8"): find_checkpoint(str(home))
    save_file(good | {name: good[name][:, :16].contiguous()}, file)
    with pytest.raises(InputError, match=r"of shape \(32, 32\), but .* \(32, 16\)"): find_checkpoint(str(home))
    save_file({k: v for k, v in good.items() if k != name} | {"other": good[name]}, file)
    with pytest.raises(InputError, match="has no tensor of that name"): find_checkpoint(str(home))
    file.write_bytes(b"\xff"*100)
    with pytest.raises(InputError, match="list of weights .* could not be read"): find_checkpoint(str(home))
    file.unlink()
    with pytest.raises(InputError, match=f"has no {file.name}"): find_checkpoint(str(home))
    index = json.loads((home/shards.INDEX).read_text())
    index["weight_map"][name] = "../elsewhere.safetensors"
    (home/shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside of"): find_checkpoint(str(home))


def measured(lm):
    "What a repair measures: cost of states, one after the other and batched, sampled text, and effects of heads."
    evaluator = build_evaluator(make_config("tiny"), lm, "search", prompts=4, tokens=300)
    rows = evaluator(states).drop(columns="state").to_numpy()
    batched = measure_batched(lm, evaluator.metrics["toxicity"], np.array(states))
    with heads_dropped(lm.model, state): text = generate(lm, ["the man is", "he"], new_tokens=6)
    return rows, np.array(batched), text


def gradient(lm):
    "Of the log-likelihood of some text with respect to the gates of all heads."
    gates = [torch.ones(p.n_heads, 1, requires_grad=True) for p in lm.projections]
    def gate(p, values): return p.module.register_forward_pre_hook(
        lambda module, args: (args[0].unflatten(-1, (p.n_heads, -1)).mul(values.to(args[0])).flatten(-2), *args[1:]))
    handles, ids = [gate(p, g) for p, g in zip(lm.projections, gates)], torch.arange(40).reshape(4, 10)
    with weights_frozen(lm.model): lm.model(ids, labels=ids).loss.backward()
    for handle in handles: handle.remove()
    return torch.cat([g.grad.ravel() for g in gates]).numpy()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_on_the_disk(family, tmp_path):
    "The numbers are those of a model in memory, and the repaired model is copied."
    home = saved(tmp_path/"home", family)
    whole = load(str(home), device="cpu")
    inner = "transformer" if family == "gpt2" else "model"
    layers = "h" if family == "gpt2" else "layers"
    parts = [name for name, _ in getattr(whole.model, inner).named_children() if name != layers]
    device_map = {f"{inner}.{name}": "cpu" for name in parts} | {"lm_head": "cpu"}
    device_map |= {f"{inner}.{layers}.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
    lm = load(str(home), device=device_map)
    assert whole.is_in_memory and not lm.is_in_memory
    assert lm.to_record() == whole.to_record() and lm.device.type == "cpu"
    for found, expected in zip(measured(lm), measured(whole)): assert np.array_equal(found, expected)
    assert np.array_equal(gradient(lm), gradient(whole))


@needs_bitsandbytes
@pytest.mark.parametrize("quantize, bits, agreement", [("8bit", 8, .999), ("4bit", 4, .9)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rounded_weights(family, quantize, bits, agreement, tmp_path):
    home = saved(tmp_path/"home", family)
    lm, whole = load(str(home), device="cpu", quantize=quantize), load(str(home), device="cpu")
    assert lm.n_heads_total == whole.n_heads_total == 16 and not lm.is_in_memory
    record = lm.to_record()
    assert record["quantize"] == quantize and record["weights"] != whole.to_record()["weights"]
    rows, batched, text = measured(lm)
    assert np.isfinite(rows.astype(float)).all() and len(text) == 2
    assert lm.to_record() == record, "measuring has changed the weights"
    # weights are rounded to 256 or 16 values between their extremes: the effects of heads keep their direction
    found, expected = gradient(lm), gradient(whole)
    assert found @ expected > agreement*np.linalg.norm(found)*np.linalg.norm(expected)
    assert lm.to_record() == record
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        with heads_dropped(lm.model, state): together = lm.model(ids).logits
        with heads_dropped(lm.model, np.array([state, states[0]])): apart = lm.model(ids).logits
    assert torch.allclose(together[0], apart[0], atol=1e-4)
    assert not torch.allclose(together[1], apart[1], atol=1e-4)
    for change in (lambda: prune(lm.model, state), lambda: save_pruned(lm, state, tmp_path/"no")):
        with pytest.raises(InputError, match="rounded to fewer bits"): change()
    held = lm.model.get_memory_footprint()
    assert abs(weight_bytes(configs[family], torch.float32, quantize=quantize) - held) < .05*held


@pytest.mark.parametrize("family", configs)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_of_weights(family, dtype):
    model = AutoModelForCausalLM.from_config(configs[family]).to(dtype)
    assert weight_bytes(configs[family], dtype) == sum(p.numel()*p.element_size() for p in model.parameters())


def test_weights_that_do_not_fit(monkeypatch, tmp_path, capfd):
    "Refused before they are read, by `load` and by `repair`; a device map may use the disk."
    home = saved(tmp_path/"home", "llama")
    monkeypatch.setattr(large_models, "free_memory", lambda device: 1000)
    for ask in (lambda: load(str(home), device="cpu"), lambda: check_job(str(home), tmp_path/"out", prompts="tiny", text="tiny", scorer="words:bad")):
        with pytest.raises(InputError, match="0.0 GiB of cpu are free.*dtype='bfloat16'.*device='auto'"): ask()
    assert not (tmp_path/"out").exists()
    assert load(str(home), device="auto").n_heads_total == 16
    huge = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
    check_memory("huge", huge, torch.bfloat16, "auto")
    assert "huge: 1" in capfd.readouterr().err


def test_wrong_arguments(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="unknown quantize '8'"): load("tiny", quantize="8")
    for device in ("gpu", "cpu:x"):
        with pytest.raises(InputError, match=f"device '{device}'"): load("tiny", device=device)
    with pytest.raises(InputError, match="device 'cuda:7'"): load("tiny", device="cuda:7")
    with pytest.raises(InputError, match="cannot be saved file by file"): check_job("tiny", tmp_path, device="auto", ablation="mean")
    monkeypatch.setattr(large_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'8bit' needs bitsandbytes: pip install 'fairness_repair.large"): load("tiny", quantize="8bit")
    with pytest.raises(InputError, match="'auto' needs accelerate"): load("tiny", device="auto")


@needs_bitsandbytes
def test_repair_with_rounded_weights(tmp_path):
    "Heads are chosen with rounded weights; the saved model is the checkpoint with zeros."
    out = tmp_path/"out"
    options = dict(budget=25, method="random", quantize="8bit", save_candidate=True, progress=False)
    result = repair("tiny", out, **options)
    assert result.saved and result.record["config"]["quantize"] == "8bit" and result.record["config"]["dtype"] == "bfloat16"
    again = load(str(result.checkpoint), device="cpu")
    whole = load("tiny", device="cpu")
    prune(whole.model, result.drop_mask)
    assert again.weights_hash() == whole.weights_hash()
    card = (out/"report.html").read_text(encoding="utf-8")
    assert "8bit while measuring" in card and "--quantize 8bit" in card and "--dtype" not in card
    assert repair("tiny", out, **options).record["measured"] == 0
    with pytest.raises(InputError, match="quantize = '8bit'"): repair("tiny", out, **options | dict(quantize=""))


def test_repair_with_layers_on_the_disk(tmp_path, monkeypatch):
    "`device` is not part of a repair: the same folder goes on with a model that is in memory."
    import fairness_repair.app.pipeline as pipeline
    spread = {f"transformer.{part}": "cpu" for part in ("wte", "wpe", "ln_f", "h.0", "h.1", "h.2")} | {"transformer.h.3": "disk", "lm_head": "cpu"}
    monkeypatch.setattr(pipeline, "load", lambda *a, **k: load(*a, **k | dict(device=spread if k["device"] == "auto" else k["device"])))
    options = dict(budget=25, method="random", save_candidate=True, progress=False)
    result = repair("tiny", tmp_path/"out", device="auto", **options)
    copied = load(str(result.checkpoint), device="cpu").weights_hash()
    again = repair("tiny", tmp_path/"out", **options)
    assert again.record["measured"] == 0 and load(str(again.checkpoint), device="cpu").weights_hash() == copied
