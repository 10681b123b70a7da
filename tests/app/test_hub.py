"`repair --push-to`, against a stand-in of the hub: what arrives there, what is refused, what survives a broken push."
import json, os, subprocess, sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from fairness_repair.app import pipeline, repair
from fairness_repair.app.hub import PushedModel, _find_writable, push
from fairness_repair.app.job import check_job
from fairness_repair.app.model_card import _read_base, write_model_card
from fairness_repair.core import InputError
from fairness_repair.language.models import load
from hub_stand_in import HubStandIn, Repository
from test_writers import made_up

TOKEN = "hf_writes"
command = [sys.executable, "-c", "from fairness_repair.app.command_line import main; main()"]
pushing = ("tiny", "--out", "repaired", "--method", "FASP", "--push-to", "me/fair-tiny", "--no-progress")


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as hub: yield hub


def run(folder, url, *arguments):
    "Run a command that knows only this hub, with an empty cache of its own."
    env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    env |= dict(OMP_NUM_THREADS="1", HF_ENDPOINT=url, HF_TOKEN=TOKEN, HF_HOME=str(folder/"hub"), HF_HUB_DISABLE_XET="1")
    return subprocess.run(arguments, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    "A repair whose first push breaks off, and the same command again."
    folder = tmp_path_factory.mktemp("pushed")
    hub.failing_commits = 1
    broken = run(folder, hub.url, *command, *pushing)
    left = {file.relative_to(folder): file.read_bytes() for file in (folder/"repaired").rglob("*") if file.is_file()}
    return folder, broken, left, run(folder, hub.url, *command, *pushing)


def test_broken_push_keeps_everything_and_says_so(pushed):
    folder, broken, left, _ = pushed
    assert broken.returncode == 2 and broken.stderr.count("\n") == 1, broken.stderr
    assert "push_to = 'me/fair-tiny': the upload failed: " in broken.stderr and "500" in broken.stderr
    assert "The model is in 'repaired/model' already. The same command measures nothing again" in broken.stderr
    assert {Path("repaired/result.json"), Path("repaired/report.html"), Path("repaired/model/model.safetensors")} <= set(left)
    assert "pushed" not in json.loads(left[Path("repaired/result.json")])


def test_same_command_pushes_without_measuring(hub, pushed):
    folder, *_, again = pushed
    assert again.returncode == 0, again.stderr
    url = f"{hub.url}/me/fair-tiny/commit/{hub.repositories['me/fair-tiny'].commit}"
    assert f"on the hub (private): {url}\n" in again.stdout and not again.stderr
    record = json.loads((folder/"repaired"/"result.json").read_text())
    assert record["measured"] == 0 and record["pushed"] == dict(url=url, private=True)
    assert "push_to" not in json.loads((folder/"repaired"/"config.json").read_text())


def test_hub_has_the_files_of_the_folder_byte_for_byte(hub, pushed):
    model = pushed[0]/"repaired"/"model"
    files = {file.relative_to(model).as_posix(): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    assert hub.repositories["me/fair-tiny"].files == files
    assert {"README.md", "config.json", "model.safetensors", "state.json", "tokenizer.json", "figures/groups.png"} <= set(files)


def test_hub_reads_the_header_of_the_card(hub, pushed):
    header = hub.cards[-1]
    assert header["library_name"] == "transformers" and header["pipeline_tag"] == "text-generation"
    assert "base_model" not in header and "license" not in header and "datasets" not in header
    assert header["tags"] == ["fairness", "pruning", "fairness_repair"]
    assert header["metrics"] == ["bias", "toxicity", "perplexity"]
    assert header["model-index"][0]["name"] == "fair-tiny"
    table = {row["measure"]: row for row in json.loads((pushed[0]/"repaired"/"result.json").read_text())["table"]}
    metrics = [m for result in header["model-index"][0]["results"] for m in result["metrics"]]
    assert {m["type"]: m["value"] for m in metrics} == {
        name: pytest.approx(table[name]["repaired"], rel=1e-3) for name in header["metrics"]}
    assert 'from_pretrained("me/fair-tiny"' in hub.repositories["me/fair-tiny"].files["README.md"].decode()


loading = """
import json, sys, torch
from transformers import AutoModelForCausalLM
from fairness_repair.app.model_card import _read_base
from fairness_repair.language.models import load
ids, found = torch.arange(5, 25).reshape(2, 10), {}
for name, model in {"folder": AutoModelForCausalLM.from_pretrained("repaired/model", dtype="float32"),
                    "hub": AutoModelForCausalLM.from_pretrained("me/fair-tiny", dtype="float32"),
                    "load folder": load("repaired/model").model, "load": load("me/fair-tiny").model}.items():
    with torch.no_grad(): found[name] = model.eval()(ids, use_cache=False).logits
same = [bool(torch.equal(found["folder"], found["hub"])), bool(torch.equal(found["load folder"], found["load"]))]
print(json.dumps(dict(same=same, bases=[_read_base(name) for name in sys.argv[1:]])))
"""


def test_pushed_model_loads_and_is_the_same(hub, pushed):
    "By plain transformers and by `load`; a hub model is the base model of what is made from it, with its licence."
    card = "---\nlicense: other\nlicense_name: mine\nmodel-index: wrong\n---\n# A model"
    hub.repositories["lab/licensed"] = Repository(private=False, files={"README.md": card.encode()})
    done = run(pushed[0], hub.url, sys.executable, "-c", loading, "me/fair-tiny", "lab/licensed", "lab/nothing")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"] == [True, True]
    assert found["bases"] == [dict(base_model="me/fair-tiny"), dict(base_model="lab/licensed", license="other", license_name="mine"),
                              dict(base_model="lab/nothing")]


def test_token_is_nowhere(hub, pushed):
    folder, broken, left, again = pushed
    assert TOKEN not in broken.stdout + broken.stderr + again.stdout + again.stderr
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files and not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert not any(TOKEN in request for request in hub.requests)


@pytest.fixture
def online(hub, monkeypatch, tmp_path):
    "This process, with the stand-in as its hub; a model that is loaded is an error."
    def fail(*args, **kwargs): raise AssertionError("a model was loaded before everything was checked")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path/"token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("fairness_repair.app.pipeline.load", fail)
    return monkeypatch


@pytest.mark.parametrize("token, repo_id, message", [
    ("hf_stranger", "me/x", "push_to = 'me/x': the hub does not accept the token. Run `hf auth login --force`"),
    ("hf_\xe9", "me/x", "push_to = 'me/x': the hub does not accept the token."),
    ("", "me/x", "push_to = 'me/x': no token of the hub was found. Run `hf auth login`, or set HF_TOKEN."),
    ("hf_reads", "me/x", "push_to = 'me/x': the token of 'me' may only read."),
    (TOKEN, "you/x", "push_to = 'you/x': 'me' cannot create models under 'you'. Allowed: me, lab."),
    (TOKEN, "library/x", "push_to = 'library/x': 'me' cannot create models under 'library'."),
    (TOKEN, "x", "push_to = 'x': needs user/name"),
    (TOKEN, "me/x/y", "push_to = 'me/x/y': needs user/name"),
    (TOKEN, "me/x--y", "push_to = 'me/x--y': needs user/name"),
    (TOKEN, "/x", "push_to = '/x': needs user/name"),
    (TOKEN, "me/" + "x"*97, "needs user/name"),
    (TOKEN, 5, "push_to = 5: needs text"),
])
def test_push_that_is_not_allowed_is_refused_before_measuring(hub, online, tmp_path, token, repo_id, message):
    online.setenv("HF_TOKEN", token)
    with pytest.raises(InputError) as refused: repair("tiny", tmp_path/"out", push_to=repo_id)
    assert str(refused.value).startswith(message) or message in str(refused.value)
    assert "\n" not in str(refused.value) and refused.value.__cause__ is None
    assert not token or token not in str(refused.value)
    assert not (tmp_path/"out").exists() and "me/x" not in hub.repositories


def test_hub_out_of_reach_is_refused_before_measuring(online, tmp_path):
    online.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"the hub cannot be reached \(ConnectError\)"): repair("tiny", tmp_path, push_to="me/x")
    online.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"): repair("tiny", tmp_path, push_to="me/x")


def test_option_can_be_added_to_a_finished_repair(online, pushed):
    "It changes no number, so the folder is that of the same repair."
    done = pushed[0]/"repaired"
    assert check_job("tiny", done, method="FASP").config == check_job("tiny", done, method="FASP", push_to="lab/x").config


def test_without_a_saved_model_nothing_is_pushed(hub, online, tmp_path):
    online.setattr("fairness_repair.app.pipeline.load", load)
    result = repair("tiny-equal", tmp_path/"fair", budget=60, push_to="me/fair-equal", progress=False)
    assert result.status == "nothing to repair" and "\non the hub: nothing, as no model is saved\n" in repr(result)
    assert "me/fair-equal" not in hub.repositories and result.pushed is None


def test_existing_repository_stays_public_and_keeps_other_files(hub, online, tmp_path):
    online.setattr(constants, "HF_HUB_DISABLE_XET", True)
    hub.repositories["lab/open"] = Repository(private=False, files={"LICENSE": b"mine", "README.md": b"old"})
    (tmp_path/"README.md").write_text("---\ntags: []\n---\nnew")
    assert push(tmp_path, "lab/open").private is False
    assert hub.repositories["lab/open"].files == {"LICENSE": b"mine", "README.md": b"---\ntags: []\n---\nnew"}


def test_older_weights_in_the_repository_are_removed(hub, online, tmp_path):
    "transformers reads model.safetensors first: beside the new files it would be the model that is loaded."
    online.setattr(constants, "HF_HUB_DISABLE_XET", True)
    old = {"model.safetensors": b"old", "model-00003-of-00003.safetensors": b"old", "pytorch_model.bin": b"old", "LICENSE": b"mine"}
    hub.repositories["me/again"] = Repository(private=True, files=old)
    new = {"model-00001-of-00001.safetensors": b"new", "model.safetensors.index.json": b"{}"}
    for name, content in new.items(): (tmp_path/name).write_bytes(content)
    push(tmp_path, "me/again")
    assert hub.repositories["me/again"].files == new | {"LICENSE": b"mine"}


@pytest.mark.parametrize("scopes, allowed", [
    (dict(), ["me", "lab"]), # an account whose answer says nothing of its rights
    (dict(scoped=[dict(entity=dict(type="user", name="me"), permissions=["repo.content.read"])]), []),
    (dict(scoped=[dict(entity=dict(type="org", name="lab"), permissions=["repo.write"])]), ["lab"]),
    (dict(scoped=[dict(entity=dict(type="model", name="me/one"), permissions=["repo.write"])]), ["me/one"]),
    ({"global": ["repo.write"]}, ["me", "lab"]),
])
def test_rights_of_a_fine_grained_token(scopes, allowed):
    token = dict(role="fineGrained", fineGrained=scopes)
    assert _find_writable(dict(name="me", orgs=[dict(name="lab", roleInOrg="admin")], auth=dict(accessToken=token))) == allowed


@pytest.mark.parametrize("header, expected", [
    ("license: mit", dict(license="mit")), ("license: other\nlicense_name: mine", dict(license="other", license_name="mine")),
    ("license: Our Own Terms", dict(license="other", license_name="our-own-terms")), ("tags: []", dict())])
def test_licence_of_a_local_model_is_one_that_the_hub_takes(tmp_path, header, expected):
    (tmp_path/"README.md").write_text(f"---\n{header}\n---\n# Mine")
    assert _read_base(str(tmp_path)) == expected


def test_address_stays_in_the_record(tmp_path):
    "Of a later run of the same repair without a push."
    result = made_up(tmp_path)
    result.job.out.mkdir(parents=True, exist_ok=True)
    result.pushed = PushedModel("https://hub/commit/1", True)
    pipeline._write_record(result)
    result.pushed = None
    pipeline._write_record(result)
    assert json.loads((result.job.out/"result.json").read_text())["pushed"] == dict(url="https://hub/commit/1", private=True)


def test_stopped_push_says_that_the_model_is_there(online, tmp_path):
    def stop(*args): raise KeyboardInterrupt
    online.setattr(pipeline, "push", stop)
    with pytest.raises(KeyboardInterrupt, match="the upload is not complete. The model is in .*/model' already"):
        pipeline._push_model(made_up(tmp_path), progress=True)


@pytest.mark.parametrize("settings", [dict(), dict(scorer="unitary/unbiased-toxic-roberta"), dict(status="not significant", save_candidate=True)])
def test_header_is_read_back_as_it_was_written(tmp_path, settings):
    result = made_up(tmp_path/"out", model="owner/name", **settings)
    figures = {name: tmp_path/f"{name}.png" for name in ("change", "groups")}
    for file in figures.values(): file.write_bytes(b"not much")
    file = write_model_card(result, figures)
    card = ModelCard.load(file)
    assert str(card) == file.read_text()
    assert card.data.base_model == "owner/name" and card.data.model_name == f"name-{result.label}"
    assert [(m.metric_type, m.metric_value) for m in card.data.eval_results] == [("bias", .1), ("toxicity", .1), ("perplexity", 21.)]
