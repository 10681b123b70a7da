"Figures of a report in Jupyter."
import nbformat
from nbclient import NotebookClient

SAVE = """
import matplotlib.pyplot as plt
from pathlib import Path
from tempfile import mkdtemp
from fairness_repair.app import figures
figures._draw_figures = lambda result: {}
figures.save_figures(None, Path(mkdtemp()))
"""


def test_figures_are_still_shown_after_a_report_was_saved():
    cells = list(map(nbformat.v4.new_code_cell, (SAVE, "plt.plot([1, 2]);")))
    nb = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(nb, kernel_name="python3", timeout=120).execute()
    assert any("image/png" in output.get("data", {}) for output in nb.cells[1].outputs)
