"Models that do not fit: quantized weights, layers on the disk, and repaired checkpoints that are copied file by file."
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
has_bitsandbytes = large_models.importlib.util.find_spec("bitsandbytes")
needs_bitsandbytes = pytest.mark.skipif(not has_bitsandbytes, reason="pip install bitsandbytes")


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
def test_quantized_weights(family, quantize, bits, agreement, tmp_path):
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
        with pytest.raises(InputError, match="quantized"): change()
    # what is held is counted by storage, since bitsandbytes may keep a second copy under another name
    linear = [m for m in lm.model.modules() if hasattr(m, "state") or hasattr(m, "quant_state")]
    def tensors_of(m):
        copies = getattr(m.weight, "CB", None), getattr(getattr(m, "state", None), "CB", None)
        return [m.weight.data, *(t for t in copies if t is not None)]
    for m in linear: assert len({t.untyped_storage().data_ptr() for t in tensors_of(m)}) == 1
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
    data = dict(prompts="tiny", text="tiny", scorer="words:bad")
    for ask in (lambda: load(str(home), device="cpu"), lambda: check_job(str(home), tmp_path/"out", **data)):
        with pytest.raises(InputError, match="0.0 GiB of cpu are free.*dtype='bfloat16'.*device='auto'"): ask()
    assert not (tmp_path/"out").exists()
    assert load(str(home), device="auto").n_heads_total == 16
    huge = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32)
    check_memory("huge", huge, torch.bfloat16, "auto", say=True)
    with pytest.raises(InputError, match=r"Use quantize='8bit' or '4bit', or device='auto'"):
        check_memory("huge", huge, torch.bfloat16, torch.device("cpu"))
    with pytest.raises(InputError, match=r"Use quantize='4bit', or device='auto', which spreads them over all GPUs\.$"):
        check_memory("huge", huge, torch.bfloat16, torch.device("cpu"), quantize="8bit")
    assert "huge: 1" in capfd.readouterr().err


def test_wrong_arguments(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="unknown quantize '8'"): load("tiny", quantize="8")
    for device in ("gpu", "cpu:x"):
        with pytest.raises(InputError, match=f"device '{device}'"): load("tiny", device=device)
    with pytest.raises(InputError, match="device 'cuda:7'"): load("tiny", device="cuda:7")
    with pytest.raises(InputError, match="device 'meta'"): load("tiny", device="meta")
    with pytest.raises(InputError, match="device ..cpu.."): load("tiny", device=["cpu"])
    monkeypatch.setattr(large_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'8bit' needs bitsandbytes: pip install 'fairness_repair.large"):
        load("tiny", quantize="8bit")
    with pytest.raises(InputError, match="'auto' needs accelerate"): load("tiny", device="auto")


@needs_bitsandbytes
def test_repair_with_quantized_weights(tmp_path):
    "Heads are chosen with quantized weights; the saved model is the checkpoint with zeros."
    out = tmp_path/"out"
    options = dict(budget=25, method="random", quantize="8bit", save_candidate=True, progress=False)
    result = repair("tiny", out, **options)
    assert result.saved and result.record["config"]["quantize"] == "8bit" and result.record["config"]["dtype"] == "bfloat16"
    again = load(str(result.checkpoint), device="cpu")
    whole = load("tiny", device="cpu")
    prune(whole.model, result.drop_mask)
    assert again.weights_hash() == whole.weights_hash()
    card, header = ((out/name).read_text(encoding="utf-8") for name in ("report.html", "model/README.md"))
    assert "weights quantized to 8bit" in header.split("---")[1] and "was not measured itself" in card
    assert "8bit while measuring" in card and "--quantize 8bit" in card and "--dtype" not in card
    assert repair("tiny", out, **options).record["measured"] == 0
    with pytest.raises(InputError, match="holds a repair with dtype = 'bfloat16'"):
        repair("tiny", out, **options | dict(quantize=""))


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


@needs_bitsandbytes
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_hash_covers_the_scales_of_quantized_weights(quantize, tmp_path):
    "Twice the weights have the same rounded numbers, and another scale."
    home = saved(tmp_path/"home", "llama")
    before = load(str(home), device="cpu", quantize=quantize).weights_hash()
    for file in home.glob("*.safetensors"):
        held = load_file(file)
        save_file({n: t*2 if "layers.0.self_attn.o_proj" in n else t for n, t in held.items()}, file, metadata={"format": "pt"})
    assert load(str(home), device="cpu", quantize=quantize).weights_hash() != before


@needs_bitsandbytes
def test_checkpoint_that_is_quantized_already(tmp_path):
    home = saved(tmp_path/"home", "llama")
    model = AutoModelForCausalLM.from_pretrained(home, quantization_config=large_models.quantization_config("4bit", torch.float32))
    model.save_pretrained(tmp_path/"four")
    load("tiny").tokenizer.save_pretrained(tmp_path/"four")
    lm = load(str(tmp_path/"four"), device="cpu")
    assert not lm.is_in_memory and len(generate(lm, ["the man"], new_tokens=3)) == 1
    with pytest.raises(InputError, match="quantized already"): load(str(tmp_path/"four"), device="cpu", quantize="8bit")
    with pytest.raises(InputError, match="holds it as U8"): find_checkpoint(str(tmp_path/"four"))


def test_an_older_checkpoint_is_replaced(tmp_path):
    "Whether it had one file or several: transformers must not find the old one."
    home = saved(tmp_path/"home", "llama")
    checkpoint, lm, other = find_checkpoint(str(home)), load(str(home), device="cpu"), states[0]
    loaded = lambda: load(str(tmp_path/"out"), device="cpu").weights_hash()
    expected = [load(str(save_pruned(lm, mask, tmp_path/f"{i}")), device="cpu").weights_hash() for i, mask in enumerate((state, other))]
    save_pruned(lm, state, tmp_path/"out")
    copy_pruned(checkpoint, other, tmp_path/"out")
    assert loaded() == expected[1]
    save_pruned(lm, state, tmp_path/"out")
    assert loaded() == expected[0] and find_checkpoint(str(tmp_path/"out")).files == [tmp_path/"out"/"model.safetensors"]
    with pytest.raises(InputError, match="is the folder of model"): copy_pruned(checkpoint, other, home)
    assert load(str(home), device="cpu").weights_hash() == lm.weights_hash()


def test_a_copy_holds_no_path_of_this_machine(tmp_path):
    home = saved(tmp_path/"home", "llama")
    for name, key in (("config.json", "_name_or_path"), ("tokenizer_config.json", "name_or_path")):
        held = json.loads((home/name).read_text())
        (home/name).write_text(json.dumps(held | {key: "/home/mine/secret"}))
    (home/"tokenizer_folder").mkdir()
    copied = copy_pruned(find_checkpoint(str(home)), state, tmp_path/"out")
    assert not any(b"secret" in file.read_bytes() or str(tmp_path).encode() in file.read_bytes() for file in copied.rglob("*"))
    assert load(str(copied), device="cpu").n_heads_total == 16


def on_disk(home, **options): # a Llama of `saved`
    return load(str(home), device={"model": "disk", "lm_head": "disk"} | options)


def test_all_layers_on_the_disk(tmp_path, monkeypatch):
    "One thread at a time reads them; gradients, and numbers that are not finite, say what is wrong."
    import fairness_repair.app.pipeline as pipeline
    from fairness_repair.language import generation
    from fairness_repair.language.overflow import not_finite_error
    home = saved(tmp_path/"home", "llama")
    lm = on_disk(home)
    assert lm.device.type == "cpu" and not lm.is_in_memory
    monkeypatch.setattr(generation, "SMALL_MODEL", 0)
    texts = ["the man is", "a woman was", "they are", "he"]*8
    options, whole = dict(new_tokens=4, batch_size=4), load(str(home), device="cpu")
    assert generate(lm, texts, **options) == generate(whole, texts, **options)
    assert "not finite" in str(not_finite_error(lm, lambda: None))
    before = {name for name, p in lm.model.named_parameters() if p.requires_grad}
    with weights_frozen(lm.model): assert not any(p.requires_grad for p in lm.model.parameters())
    assert {name for name, p in lm.model.named_parameters() if p.requires_grad} == before
    monkeypatch.setattr(pipeline, "load", lambda *a, **k: on_disk(home))
    data = dict(prompts="tiny", text="tiny", scorer="words:bad", progress=False)
    with pytest.raises(InputError, match="'gradient' needs all weights .* in memory.*AP or random"):
        repair(str(home), tmp_path/"out", device="auto", **data)


def test_mean_ablation_of_a_model_that_is_spread(tmp_path):
    for device in ("auto", {"": "cpu"}):
        with pytest.raises(InputError, match="cannot be saved file by file"):
            check_job("tiny", tmp_path, device=device, ablation="mean")
