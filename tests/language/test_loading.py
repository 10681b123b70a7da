"What checkpoints from elsewhere can contain: odd tokenizers, other formats, and things that must neither run nor be read."
import io, json, os, pickle, tarfile
from pathlib import Path

import pytest, torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairness_repair.core import InputError
from fairness_repair.language.generation import generate
from fairness_repair.language.models import LM, load

from families import build, small_config

words = {f"w{i}": i for i in range(64)}

def make_tokenizer(vocabulary=words, **special):
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3", **special)

def make_model(cls=GPT2LMHeadModel, **config):
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2)
    return cls(cls.config_class(**(config or sizes))).eval()

def save(folder, model=None, tokenizer=None):
    (model or make_model()).save_pretrained(folder)
    (tokenizer or make_tokenizer(eos_token="w2")).save_pretrained(folder)
    return folder

@pytest.fixture
def folder(tmp_path): return save(tmp_path/"gpt")

def refused(folder, *parts):
    with pytest.raises(InputError) as e: load(str(folder), device="cpu")
    assert all(part in str(e.value) for part in parts), str(e.value)
    return str(e.value)

def has_same_weights(lm): return lm.weights_hash() == LM("", make_model(), None).weights_hash()

def edit(file, **changes): file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_padding_token_beyond_the_vocabulary(tmp_path):
    "Llama derivatives: [PAD] is token 64 of a model with 64 rows, in the tokenizer and in the configuration."
    llama = make_model(LlamaForCausalLM, num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=64,
                       vocab_size=64)
    tokenizer = make_tokenizer(eos_token="w2")
    tokenizer.add_special_tokens(dict(pad_token="[PAD]"))
    edit(save(tmp_path, llama, tokenizer)/"config.json", pad_token_id=64)
    lm = load(str(tmp_path), device="cpu")
    assert tokenizer.pad_token_id == 64 and lm.tokenizer.pad_token_id == 2
    alone = generate(lm, ["w5"], new_tokens=4)
    assert generate(lm, ["w5", "w7 w8 w9"], new_tokens=4)[0] == alone[0] # padding changes nothing

def test_tokenizer_without_padding_and_end(tmp_path):
    lm = load(str(save(tmp_path, tokenizer=make_tokenizer())), device="cpu")
    assert lm.tokenizer.pad_token_id == 0 and lm.tokenizer.eos_token is None
    assert generate(lm, ["w5", "w7 w8 w9"], new_tokens=4)[0] == generate(lm, ["w5"], new_tokens=4)[0]

def test_more_tokens_than_rows(tmp_path):
    more = {f"w{i}": i for i in range(70)}
    refused(save(tmp_path/"words", tokenizer=make_tokenizer(more)), "writes 'w64' as token 64", "only 64 rows")
    added = make_tokenizer(eos_token="w2", additional_special_tokens=["<image>"])
    assert len(added) == 65 and load(str(save(tmp_path/"special", tokenizer=added)), device="cpu").n_heads_total == 8
    started = make_tokenizer(bos_token="[START]")
    started.backend_tokenizer.post_processor = starting(started.bos_token_id)
    refused(save(tmp_path/"start", tokenizer=started), "writes '[START]' as token 64")

def starting(token):
    from tokenizers.processors import TemplateProcessing
    return TemplateProcessing(single="[START] $A", special_tokens=[("[START]", token)])

def test_model_without_a_cache(tmp_path):
    "GPT-1 reads the whole text for each new token: the same as one token after the other by hand."
    gpt1 = build(small_config("openai-gpt"))
    lm = load(str(save(tmp_path, gpt1)), device="cpu")
    text, = generate(lm, ["w5 w6"], new_tokens=4, top_k=1)
    ids = lm.tokenizer("w5 w6")["input_ids"]
    for _ in range(4):
        scores = gpt1(torch.tensor([ids])).logits[0, -1]
        scores[2] = -torch.inf # the end token is never sampled
        ids.append(int(scores.argmax()))
    assert text.split() == lm.tokenizer.decode(ids[2:]).split()

def test_weights_in_torch_format(folder):
    "One file, or several with an index."
    tensors = {k: v.clone() for k, v in load_file(folder/"model.safetensors").items()}
    (folder/"model.safetensors").unlink()
    torch.save(tensors, folder/"pytorch_model.bin")
    assert has_same_weights(load(str(folder), device="cpu"))
    (folder/"pytorch_model.bin").unlink()
    names = sorted(tensors)
    for i, part in enumerate((names[::2], names[1::2])): torch.save({k: tensors[k] for k in part}, folder/f"part{i}.bin")
    index = dict(metadata={}, weight_map={k: f"part{names.index(k) % 2}.bin" for k in names})
    (folder/"pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert has_same_weights(load(str(folder), device="cpu"))

def test_adapters(folder, tmp_path):
    "An adapter alone, and beside a complete model: what it would change is not there without a merge."
    (tmp_path/"lora").mkdir()
    for place in (tmp_path/"lora", folder):
        (place/"adapter_config.json").write_text(json.dumps(dict(peft_type="LORA", base_model_name_or_path=str(folder))))
        refused(place, "is an adapter", "merge_and_unload")

def test_family_that_does_not_fit_is_refused_without_weights(tmp_path):
    small_config("jetmoe").save_pretrained(tmp_path)
    refused(tmp_path, "(JetMoe) does not fit", "its heads are a mixture of experts")

def test_other_sizes_than_stated(folder):
    edit(folder/"config.json", n_inner=77)
    refused(folder, "the weights of model")


class Hostile:
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return open, (str(self.mark), "w")

def test_hostile_pickle(folder, tmp_path):
    mark = tmp_path/"ran"
    (folder/"model.safetensors").unlink()
    for write in (lambda file: torch.save({"transformer.wte.weight": Hostile(mark)}, file),
                  lambda file: file.write_bytes(pickle.dumps(Hostile(mark)))):
        write(folder/"pytorch_model.bin")
        refused(folder, "the weights of model")
        assert not mark.exists()

def test_tar_that_climbs(folder, tmp_path):
    "The oldest format of torch is a tar archive."
    (folder/"model.safetensors").unlink()
    with tarfile.open(folder/"pytorch_model.bin", "w") as tar:
        for name in ("storages", "tensors", "pickle", "../../climbed"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
    before = {p for p in tmp_path.parent.rglob("*")}
    refused(folder, "the weights of model")
    assert {p for p in tmp_path.parent.rglob("*")} == before

@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "pytorch_model.bin"])
def test_link_that_leaves_the_folder(folder, tmp_path, name):
    outside = tmp_path/"outside"
    (folder/name).rename(outside) if (folder/name).exists() else outside.write_text("secret")
    (folder/name).symlink_to(outside)
    refused(folder, f"{name} leads to {outside}", "Copy that file")

def test_index_that_leaves_the_folder(folder, tmp_path):
    tensors = load_file(folder/"model.safetensors")
    (folder/"model.safetensors").rename(tmp_path/"outside.safetensors")
    for way in ("../outside.safetensors", str(tmp_path/"outside.safetensors")):
        index = dict(metadata={}, weight_map=dict.fromkeys(tensors, way))
        (folder/"model.safetensors.index.json").write_text(json.dumps(index))
        refused(folder, f"{way!r} in model.safetensors.index.json", "outside of")
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (folder/"model.safetensors.index.json").write_text(text)
        refused(folder, "model.safetensors.index.json")

def test_link_to_the_folder_itself(folder, tmp_path):
    (tmp_path/"link").symlink_to(folder)
    (folder/"again.json").symlink_to("config.json")
    assert has_same_weights(load(str(tmp_path/"link"), device="cpu"))

def test_snapshot_of_the_hub_cache(folder, tmp_path):
    "The hub's cache keeps blobs beside the snapshots and links to them; other links are refused there too."
    repo = tmp_path/"hub"/"models--someone--sketch"
    snapshot = repo/"snapshots"/("0"*40)
    (repo/"blobs").mkdir(parents=True), snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repo/"blobs"/str(i))
        (snapshot/file.name).symlink_to(Path("../../blobs")/str(i))
    assert has_same_weights(load(str(snapshot), device="cpu"))
    (tmp_path/"secret").write_text("")
    (snapshot/"merges.txt").symlink_to(tmp_path/"secret")
    refused(snapshot, "merges.txt leads to")

def test_code_in_the_folder_is_not_run(folder, tmp_path):
    "A configuration, a tokenizer and a generation of its own, of a known family and of an unknown one."
    mark = tmp_path/"ran"
    for name in ("evil.py", "custom_generate/generate.py"):
        (folder/name).parent.mkdir(exist_ok=True)
        (folder/name).write_text(f"open({str(mark)!r}, 'w')\nclass C: pass\nclass M: pass\nclass T: pass\n")
    edit(folder/"config.json", auto_map=dict(AutoConfig="evil.C", AutoModelForCausalLM="evil.M"))
    edit(folder/"tokenizer_config.json", auto_map=dict(AutoTokenizer=["evil.T", "evil.T"]))
    lm = load(str(folder), device="cpu")
    assert has_same_weights(lm) and generate(lm, ["w5"], new_tokens=2) and not mark.exists()
    edit(folder/"config.json", model_type="evil")
    refused(folder, "needs code from its own repository")
    edit(folder/"config.json", model_type="gpt2")
    edit(folder/"tokenizer_config.json", tokenizer_class="EvilTokenizer")
    try: load(str(folder), device="cpu")
    except InputError: pass
    assert not mark.exists()

def test_tokenizer_file_elsewhere(folder, tmp_path):
    "A path in tokenizer_config.json is not followed."
    other = make_tokenizer({f"x{i}": i for i in range(64)} | {"w3": 3})
    other.save_pretrained(tmp_path/"other")
    edit(folder/"tokenizer_config.json", tokenizer_file=str(tmp_path/"other"/"tokenizer.json"))
    assert load(str(folder), device="cpu").tokenizer("w5")["input_ids"] == [5]
