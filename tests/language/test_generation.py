"Generation on several cores, and in the memory there is."
import functools, json, subprocess, sys
import pytest, torch
from transformers import GPT2Config, GPT2LMHeadModel

from fairness_repair.language import generation as generation
from fairness_repair.language.likelihood import sliding_windows, window_nll
from fairness_repair.language.generation import generate, row_bytes
from fairness_repair.language.models import LM, load

@pytest.fixture(scope="module")
def wide():
    "A random model large enough for batches to be handed out to cores."
    torch.manual_seed(0)
    tokenizer = load("tiny").tokenizer
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=640, n_layer=3, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    assert sum(p.numel() for p in model.parameters()) > 1e7
    return LM("wide", model, tokenizer)

@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)

@pytest.mark.parametrize("inside", [False, True])
def test_cores_do_not_matter(wide, threads, inside):
    texts = ["the man is", "a woman was", "they are", "he", "she is the", "a man"]
    found = []
    for cores in (1, 2):
        threads(cores)
        with torch.inference_mode(inside): found.append(generate(wide, texts, new_tokens=3, batch_size=2))
        assert torch.get_num_threads() == cores
    assert found[0] == found[1] and len(set(found[0])) > 1

texts = ["the man is", "a woman was", "they are", "he", "she is the", "a man"]*4

@pytest.fixture
def batch_sizes(wide):
    "Rows of each forward pass."
    seen, forward = [], wide.model.forward
    @functools.wraps(forward) # its signature is looked at
    def watched(input_ids, **kwargs):
        seen.append(len(input_ids))
        return forward(input_ids=input_ids, **kwargs)
    wide.model.forward = watched
    yield seen
    wide.model.forward = forward

def test_rows_come_from_free_memory(wide, threads, monkeypatch, batch_sizes):
    threads(1)
    usual = generate(wide, texts, new_tokens=3)
    assert set(batch_sizes) == {24}
    batch_sizes.clear()
    longest = max(len(ids) for ids in wide.tokenizer(texts)["input_ids"]) + 3
    monkeypatch.setattr(generation, "free_memory", lambda device: 2*5*row_bytes(wide, longest))
    assert generate(wide, texts, new_tokens=3) == usual and set(batch_sizes) == {5, 4}
    monkeypatch.setattr(generation, "free_memory", lambda device: 0)
    assert generate(wide, texts, new_tokens=3) == usual and batch_sizes[-3:] == [1, 1, 1]

def test_what_does_not_fit_is_done_in_halves(wide, threads, batch_sizes):
    threads(2)
    windows = sliding_windows(list(range(2, 60))*4, window=32, stride=16)
    usual, read, forward = generate(wide, texts, new_tokens=3), window_nll(wide, windows), wide.model.forward
    @functools.wraps(forward)
    def small(input_ids, **kwargs):
        if len(input_ids) > 7: raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)
    wide.model.forward = small
    batch_sizes.clear()
    assert generate(wide, texts, new_tokens=3) == usual and max(batch_sizes) == 6
    assert window_nll(wide, windows) == pytest.approx(read, rel=1e-5)
    @functools.wraps(forward)
    def full(input_ids, **kwargs): raise torch.OutOfMemoryError("CUDA out of memory")
    wide.model.forward = full
    with pytest.raises(torch.OutOfMemoryError): generate(wide, texts, new_tokens=3)

measured = """
import json, resource, sys, torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig
from fairness_repair.language import generation as generation
from fairness_repair.language.likelihood import Window, window_nll
from fairness_repair.language.models import LM, load
torch.set_num_threads(1)
configs = dict(gpt2=GPT2Config(n_layer=2, n_embd=256, n_head=8, vocab_size=40000, n_positions=128),
               llama=LlamaConfig(num_hidden_layers=4, hidden_size=384, intermediate_size=1024,
                                 num_attention_heads=6, num_key_value_heads=3, vocab_size=32000))
lm = LM("x", AutoModelForCausalLM.from_config(configs[sys.argv[1]]).eval(), load("tiny").tokenizer)
def peak(): # of this program; getrusage also counts the one that started it
    return 1024*int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def forget(): # the peak so far, of loading the model for instance
    with open("/proc/self/clear_refs", "w") as f: f.write("5")
rows, found = [list(range(2, 58))]*96, {}
forget(); before = peak()
with torch.inference_mode(): generation.continue_batch(lm, rows, torch.arange(96), 8)
found["write"] = (peak() - before)/96/generation.row_bytes(lm, 64)
windows = [Window(tuple(range(64)), 1)]*48
window_nll(lm, windows[:1]); forget(); before = peak()
whole = window_nll(lm, windows, tokens=48*64)
found["read"] = (peak() - before)/48/generation.row_bytes(lm, 64, n_scored=64)
here = int(open("/proc/self/statm").read().split()[0])*resource.getpagesize()
limit = here + 20*generation.row_bytes(lm, 64, n_scored=64) # room for less than half of the rows
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
tried, forward = [], lm.model.forward
def watched(input_ids, **kwargs):
    tried.append(len(input_ids))
    return forward(input_ids=input_ids, **kwargs)
lm.model.forward = watched
found["error"] = float(abs(window_nll(lm, windows, tokens=48*64) - whole).max())
found["tried"] = tried
print(json.dumps(found))
"""

@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_memory_is_foretold_and_running_out_survived(family):
    "Peaks and a real limit, in a process of their own."
    command = [sys.executable, "-c", measured, family]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for peak in (found["write"], found["read"]):
        assert .2 < peak < 1.6 # half of the free memory is used: up to 2 is safe
    assert found["tried"][0] == 48 and max(found["tried"][1:]) >= 6 and len(found["tried"]) > 2
    assert found["error"] < 1e-2
