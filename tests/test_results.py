"The results page and the README say what the recorded tables say."
import re, subprocess

import nbformat, pytest

from fairness_repair.core import paths
from fairness_repair.report import recorded_findings

root = paths.root
page, readme = (root/"figures"/"results.md").read_text(encoding="utf-8"), (root/"README.md").read_text(encoding="utf-8")


def make_page(folder, out, monkeypatch):
    "Run the notebook on the tables of a folder: the page, and the lines of the README."
    monkeypatch.setenv("FAIRNESS_REPAIR_FIGURES", str(out))
    space = {}
    for cell in nbformat.read(paths.nbs/"results.ipynb", 4).cells:
        if cell.cell_type != "code": continue
        space["FOLDER"] = folder
        exec(cell.source.replace('paths.root/"figures"', "FOLDER"), space)
    return (out/"results.md").read_text(encoding="utf-8"), space["table_lines"]


def committed(folder):
    "The figures as they are committed: a demo may have drawn some of them anew."
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD", "figures"], cwd=root, capture_output=True)
    if archive.returncode: pytest.skip("not a checkout, and the tables were written anew")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder/"figures"


def test_no_number_is_typed(tmp_path, monkeypatch):
    made, lines = make_page(root/"figures", tmp_path/"out", monkeypatch)
    if made != page: made, lines = make_page(committed(tmp_path/"committed"), tmp_path/"again", monkeypatch)
    assert made == page, "figures/results.md is out of date: run make docs"
    assert "\n".join(lines) in readme, "README.md is out of date: run make docs"


def test_a_changed_table_changes_the_page(tmp_path, monkeypatch):
    folder = tmp_path/"figures"
    subprocess.run(["cp", "-r", root/"figures", folder], check=True)
    text = (folder/"ap"/"rq2_ap-tiny.csv").read_text()
    (folder/"ap"/"rq2_ap-tiny.csv").write_text(re.sub(r"(?m)^AP,3,[^,]+", "AP,3,0.4353533", text))
    assert "`tiny`: AP cuts bias by 50 %" in make_page(folder, tmp_path/"out", monkeypatch)[0]


def test_every_research_question_has_a_line():
    questions = {file.stem for file in paths.nbs.glob("rq*.ipynb")}
    assert questions == {name for name in questions if re.search(rf"\b{name}\b", page)}


@pytest.mark.parametrize("notebook", sorted(paths.nbs.glob("rq*.ipynb")), ids=lambda file: file.stem)
def test_notebook_opens_with_its_lines(notebook):
    cell = next(c for c in nbformat.read(notebook, 4).cells if c.id == "findings")
    assert f'"{notebook.stem}"' in cell.source
    assert cell.outputs[0].data["text/markdown"] == recorded_findings(notebook.stem), "run make docs"
